// Errors as a page sees them, and as messages between page and worker.

/** What went wrong: a kind and what it is about, to react to; a text for people. */
export class DopplerError extends Error {
  constructor(kind, message, dump, report, about) {
    super(message);
    this.name = "DopplerError";
    this.kind = kind;
    if (about) this.about = about;
    if (dump) this.dump = dump;
    if (report) this.report = report;
  }
}

/** An error of Rust is an `Error` whose name is its kind, one lower-case word. */
const isKind = (name) => /^[a-z]+$/.test(name);

/** Whatever was thrown, as an object that can be posted. */
export function plain(thrown) {
  if (thrown instanceof DopplerError) {
    const { kind, message, dump, report, about } = thrown;
    return { kind, message, dump, report, about };
  }
  if (thrown instanceof Error && isKind(thrown.name)) return { kind: thrown.name, message: thrown.message, about: thrown.about };
  if (thrown instanceof Error) return { kind: "internal", message: `${thrown.name}: ${thrown.message}` };
  return { kind: "internal", message: String(thrown) };
}

/** The error that was posted. */
export const revived = ({ kind, message, dump, report, about }) => new DopplerError(kind, message, dump, report, about);

/** Refuses to go on outside a browser: Node and its like may import this package, for pages that they make, but cannot run it. */
export function needBrowser(scope = globalThis) {
  const { node, bun, deno } = scope.process?.versions ?? {};
  const runtime = bun ? `Bun ${bun}` : deno ? `Deno ${deno}` : node && `Node ${node}`;
  if (!runtime || scope.navigator?.gpu) return;
  const hint = "load it in a page, as the README of the package shows, or start the `doppler` binary from here";
  throw new DopplerError("device", `@doppler/web runs on WebGPU in a browser, but this is ${runtime}: ${hint}`);
}
