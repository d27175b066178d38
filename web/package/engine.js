// The engine's side of the conversation with a page, in a worker or beside the page: messages come in at a port, one
// model is loaded, sessions do their jobs, and what happens goes back. `index.js` is the other side.
import init, * as wasm from "./doppler_web.js";
import { DopplerError, plain } from "./errors.js";
import { load } from "./load.js";
import { whole } from "./report.js";

/** Milliseconds within which a browser tells that a device was lost, after all that was asked of it. */
const NEWS = 3000;
/** When it is clear whether `device`, which failed, is lost. */
async function known(device) {
  if (!device) return;
  const done = device.queue.onSubmittedWorkDone().catch(() => {});
  await Promise.race([device.lost, done.then(() => new Promise((resolve) => setTimeout(resolve, NEWS)))]);
}

/** Everyone who is to hear that this module's memory can no longer be used. */
const dying = new Set();
let crashed = false;
function crash(message) {
  crashed = true;
  dying.forEach((end) => end({ kind: "crash", message: `the engine crashed: ${message}; load the model again` }));
}

let ready = null;
async function start() {
  if (crashed) throw new DopplerError("crash", "the engine crashed before in this page; reload it, or load models in workers");
  await (ready ??= init().then(() => wasm.on_panic(crash)));
}

/** A trap of wasm has no handler of its own. */
const onTrap = (thrown, message) => thrown instanceof WebAssembly.RuntimeError && crash(message);
addEventListener("error", (event) => onTrap(event.error, event.message));
addEventListener("unhandledrejection", (event) => onTrap(event.reason, String(event.reason)));

/** What a session is to do. Rust takes jobs out one after the other. */
class Jobs {
  #waiting = [];
  #wake = null;
  #closed = false;
  #current = null;
  constructor(onOpened) {
    this.opened = onOpened;
  }
  add(job) {
    this.#waiting.push(job);
    this.#wake?.();
  }
  /** No more jobs: the one that is under way ends soon, the others fail. */
  close({ kind, message } = { kind: "closed", message: "the session was closed" }) {
    this.#closed = true;
    if (this.#current) this.#current.stopped = true;
    for (const job of this.#waiting.splice(0)) job.failed(kind, message);
    this.#wake?.();
  }
  async next() {
    this.#current = null;
    while (!this.#waiting.length && !this.#closed) await new Promise((resolve) => (this.#wake = resolve));
    this.#current = this.#closed ? null : this.#waiting.shift();
    return this.#current;
  }
}

/** One generation. */
class Job {
  stopped = false;
  #id;
  #port;
  #end;
  #device;
  constructor(id, request, port, device, onEnd) {
    this.#id = id;
    this.#device = device;
    this.request = JSON.stringify(request);
    this.#port = port;
    this.#end = onEnd;
  }
  prefill(done, total) {
    this.#port.postMessage({ id: this.#id, prefill: { done, total } });
  }
  part(text, id, step) {
    this.#port.postMessage({ id: this.#id, part: { text, id: id ?? null, step: step ?? null } });
  }
  records(json) {
    this.#port.postMessage({ id: this.#id, records: json });
  }
  finished(json, dump, report) {
    this.#end();
    const value = { ...JSON.parse(json), ...(dump && { dump }), ...(report && { report: whole(report) }) };
    this.#port.postMessage({ id: this.#id, value }, dump ? [dump.buffer] : []);
  }
  failed(kind, message, dump, report) {
    this.#end();
    const tell = () => this.#port.postMessage({ id: this.#id, error: { kind, message, dump, report: whole(report) } }, dump ? [dump.buffer] : []);
    if (kind !== "device") return tell();
    // If the device is lost, that is the news, and comes first.
    known(this.#device).then(tell);
  }
}

/** Long work that is no generation. */
class Task {
  stopped = false;
  constructor(onProgress) {
    this.progress = (what, done, total) => onProgress({ what, done, total });
  }
  /** Lets messages in that wait: one may say to stop. */
  pause() {
    return new Promise((resolve) => setTimeout(resolve));
  }
}

/** The bytes of a file that a page gave. */
async function bytes(name, blob) {
  try {
    return new Uint8Array(await blob.arrayBuffer());
  } catch (error) {
    throw new DopplerError("io", `${name}: it cannot be read (${error.message}); choose it again`);
  }
}

/** What a comparison found, with its report whole. */
function compared(json) {
  const found = JSON.parse(json);
  return { ...found, html: whole(found.html) };
}

/** Answers what comes in at `port` until it is told to close. */
export function serve(port) {
  let model = null;
  let native = null;
  let folder = null;
  const sessions = new Map();
  /** How to end what is under way, by the number of the message that began it. */
  const running = new Map();
  const dead = (error) => port.postMessage({ fatal: error });

  const calls = {
    async load({ id, source, options }) {
      const controller = new AbortController();
      running.set(id, () => controller.abort(new DopplerError("aborted", "loading was aborted")));
      const tell = (message) => port.postMessage({ id, ...message });
      dying.add(dead);
      await start();
      const loaded = await load(source, options, controller.signal, tell);
      if (!loaded.model) return loaded.info;
      ({ model, native, folder } = loaded);
      const mine = native;
      native?.lost.then(({ reason, message }) => {
        // Letting go of it is no loss.
        if (native === mine) port.postMessage({ lost: { reason: reason ?? "unknown", message } });
      });
      return loaded.info;
    },
    tokens: ({ request }) => JSON.parse(model.tokens(JSON.stringify(request))),
    session: ({ id, session, options }) => openSession(session, options),
    generate({ id, session, request, options }) {
      return new Promise((resolve) => {
        const once = session === null;
        const name = once ? `once ${id}` : session;
        if (once) openSession(name, options).catch(() => {});
        const jobs = sessions.get(name);
        if (!jobs) throw new DopplerError("closed", "this session was closed");
        const job = new Job(id, request, port, native, () => {
          running.delete(id);
          if (once) closeSession(name);
          resolve(ANSWERED);
        });
        running.set(id, () => (job.stopped = true));
        jobs.add(job);
      });
    },
    async compare({ id, dump, request }) {
      const task = new Task((progress) => port.postMessage({ id, progress }));
      running.set(id, () => (task.stopped = true));
      try {
        return compared(await model.compare(await bytes("dump", dump), JSON.stringify(request), task));
      } finally {
        running.delete(id);
      }
    },
    async compareDumps({ a, b, request }) {
      await start();
      return compared(wasm.compare_dumps(await bytes("a", a), await bytes("b", b), JSON.stringify(request)));
    },
    closeSession: async ({ session }) => closeSession(session),
    async close() {
      dying.delete(dead);
      for (const end of [...running.values()]) end();
      for (const name of [...sessions.keys()]) closeSession(name);
      model?.free();
      const device = native;
      model = native = null;
      device?.destroy();
      folder?.close();
    },
  };

  function closeSession(name) {
    sessions.get(name)?.close();
    sessions.delete(name);
  }
  /** Resolves when the session is open. */
  function openSession(name, options) {
    return new Promise((resolve, reject) => {
      const jobs = new Jobs(resolve);
      sessions.set(name, jobs);
      const served = async () => await model.session(JSON.stringify(options), jobs);
      served().catch((error) => {
        // What is no error of Rust's own is a trap, or what is left after one.
        if (plain(error).kind === "internal") crash(error.message);
        sessions.delete(name);
        jobs.close(plain(error));
        reject(error);
      });
    });
  }

  port.onmessage = async ({ data }) => {
    const { id, call } = data;
    if (call === undefined) return;
    if (call === "abort") return running.get(data.of)?.();
    try {
      if (!["load", "close", "compareDumps"].includes(call) && !model) throw new DopplerError("closed", "the model was closed");
      const value = await calls[call](data);
      if (value !== ANSWERED) port.postMessage({ id, value });
    } catch (error) {
      if (error instanceof WebAssembly.RuntimeError) crash(error.message);
      if (call === "load") dying.delete(dead);
      port.postMessage({ id, error: plain(error) });
    }
    if (call === "load") running.delete(id);
  };
}

/** A call whose answer has been posted. */
const ANSWERED = Symbol("answered");
