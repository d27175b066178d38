// What several cases need.
import { DopplerError } from "@doppler/web";

export const demo = "/models/demo/";
export const golden = (name) => `/golden/${name}/`;
/** A tiny model, and a text for it; what it makes of that goes on until it is stopped. */
export const tiny = golden("gemma2");
export const text = "The model says 3 words.";
export const endless = { maxTokens: 220, raw: true };

/** What a promise is rejected with. */
export const failure = (promise) =>
  promise.then(
    () => null,
    (error) => ({ kind: error.kind ?? null, name: error.name, message: error.message, ours: error instanceof DopplerError }),
  );

/** A worker of the package in which `code` runs before anything is asked of it. */
export function workerWith(code) {
  const script = `import "${location.origin}/web/worker.js";\n${code}`;
  return new Worker(URL.createObjectURL(new Blob([script], { type: "text/javascript" })), { type: "module" });
}
