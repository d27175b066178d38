// The engine's side of the conversation with a page, in a worker or beside the page: messages come in at a port, one
// model is loaded, sessions do their jobs, and what happens goes back. `index.js` is the other side.
import init, * as wasm from "./doppler_web.js";
import * as devices from "./device.js";
import { DopplerError, plain } from "./errors.js";
import * as files from "./files.js";

/** Bytes of weights after which loading waits for the device to have taken them. */
const UPLOADED = 256 << 20;
/** The files of a model that are not weights, under the names that Rust knows them by. */
const TEXTS = {
  config: "config.json",
  generationConfig: "generation_config.json",
  tokenizer: "tokenizer.json",
  tokenizerConfig: "tokenizer_config.json",
  chatTemplate: "chat_template.jinja",
};
const WEIGHTS = "model.safetensors";
const INDEX = "model.safetensors.index.json";

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
  constructor(id, request, port, onEnd) {
    this.#id = id;
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
    const value = { ...JSON.parse(json), ...(dump && { dump }), ...(report && { report }) };
    this.#port.postMessage({ id: this.#id, value }, dump ? [dump.buffer] : []);
  }
  failed(kind, message, dump, report) {
    this.#end();
    this.#port.postMessage({ id: this.#id, error: { kind, message, dump, report } }, dump ? [dump.buffer] : []);
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

/** Answers what comes in at `port` until it is told to close. */
export function serve(port) {
  let model = null;
  let native = null;
  let closed = false;
  const sessions = new Map();
  /** How to end what is under way, by the number of the message that began it. */
  const running = new Map();
  const dead = (error) => port.postMessage({ fatal: error });
  dying.add(dead);

  const calls = {
    async load({ id, source, options }) {
      const controller = new AbortController();
      running.set(id, () => controller.abort(new DopplerError("aborted", "loading was aborted")));
      const tell = (message) => port.postMessage({ id, ...message });
      await start();
      const loaded = await load(source, options, controller.signal, tell);
      ({ model, native } = loaded);
      native?.lost.then(({ reason, message }) => {
        if (!closed) dead({ kind: "device", message: `the GPU device was lost (${reason}): ${message || "the browser says no more"}; load the model again` });
      });
      return JSON.parse(model.info());
    },
    session: ({ id, session, options }) => openSession(session, options),
    generate({ id, session, request, options }) {
      return new Promise((resolve) => {
        const once = session === null;
        const name = once ? `once ${id}` : session;
        if (once) openSession(name, options).catch(() => {});
        const jobs = sessions.get(name);
        if (!jobs) throw new DopplerError("closed", "this session was closed");
        const job = new Job(id, request, port, () => {
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
        return JSON.parse(await model.compare(await bytes("dump", dump), JSON.stringify(request), task));
      } finally {
        running.delete(id);
      }
    },
    async compareDumps({ a, b, request }) {
      await start();
      return JSON.parse(wasm.compare_dumps(await bytes("a", a), await bytes("b", b), JSON.stringify(request)));
    },
    closeSession: async ({ session }) => closeSession(session),
    async close() {
      closed = true;
      dying.delete(dead);
      for (const name of [...sessions.keys()]) closeSession(name);
      for (const stop of [...running.values()]) stop();
      model?.free();
      model = null;
      native?.destroy();
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

/** A model on its device, and the browser's own device. */
async function load(source, options, signal, tell) {
  const folder = files.open(source, signal);
  const names = Object.entries(TEXTS);
  const texts = Object.fromEntries(await Promise.all(names.map(async ([key, name]) => [key, await folder.text(name)])));
  if (texts.config === null) throw new DopplerError("io", `${folder.name}: no config.json${await told(folder)}`);
  const { weights, shards } = await findWeights(folder);
  const about = {
    name: folder.name,
    ...texts,
    weights: weights.map(({ name, size }) => ({ name, size })),
    shards,
    runtime: options.runtime,
    allowUnknownConfig: options.allowUnknownConfig,
  };
  const floor = options.runtime.runtime?.inference?.limits === "floor";
  const runtime = JSON.stringify(options.runtime);
  const { device, native } = await devices.open((about) => wasm.open_device(runtime, about), options.subgroups && !floor);
  try {
    signal.throwIfAborted();
    const model = await wasm.Model.load(device, JSON.stringify(about), hostFiles(weights, native, signal, tell));
    // A browser tells later that there was no memory for a buffer.
    await native?.queue.onSubmittedWorkDone();
    model.check();
    return { model, native };
  } catch (error) {
    native?.destroy();
    throw error;
  }
}

/** What Rust reads weights through. */
function hostFiles(weights, native, signal, tell) {
  let uploaded = 0;
  return {
    async read(file, start, end) {
      signal.throwIfAborted();
      const bytes = await weights[file].read(start, end);
      uploaded += bytes.length;
      if (uploaded > UPLOADED && native) {
        uploaded = 0;
        await native.queue.onSubmittedWorkDone();
      }
      signal.throwIfAborted();
      return bytes;
    },
    expect: (file, ranges) => weights[file].expect([...ranges]),
    progress: (loaded, total, tensor) => tell({ progress: { loaded, total, tensor } }),
    records: (records) => tell({ records }),
  };
}

/** The weight files as transformers finds them: `model.safetensors`, else the files of its index. */
async function findWeights(folder) {
  const single = await folder.weights(WEIGHTS);
  if (single) return { weights: [single], shards: null };
  const text = await folder.text(INDEX);
  if (text === null) {
    throw new DopplerError("io", `${folder.name}: neither ${WEIGHTS} nor ${INDEX}${await told(folder)}; Doppler reads safetensors files`);
  }
  const names = JSON.parse(wasm.shard_files(INDEX, text));
  const found = await Promise.all(names.map((name) => folder.weights(name)));
  const missing = names.filter((_, i) => !found[i]);
  if (missing.length) {
    const list = missing.map((name) => `\n  ${name}`).join("");
    throw new DopplerError("weights", `${folder.name}: ${missing.length} of ${names.length} weight files are missing:${list}`);
  }
  return { weights: found, shards: { name: INDEX, text } };
}

/** What there is instead, where that is known. */
async function told(folder) {
  const names = await folder.names();
  return names ? ` among these files: ${names.slice(0, 12).join(", ") || "none"}` : " at this address (404, 403, or a web page in its place)";
}
