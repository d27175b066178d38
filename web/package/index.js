// `@doppler/web`: the engine in a page. Types and what everything means are in `index.d.ts`.
import { manager } from "./cache.js";
import { Connection, recorded } from "./connection.js";
import { DopplerError, needBrowser } from "./errors.js";
import * as hub from "./hub.js";
import * as options from "./options.js";
import { Keeper } from "./recovery.js";

export { DopplerError };

export const Doppler = {
  async load(source, given = {}) {
    needBrowser();
    const wanted = options.loading(given);
    given.signal?.throwIfAborted();
    const keeper = await new Keeper(located(source, given), wanted, given).open();
    if (keeper.info.cached) persist();
    return new Model(keeper);
  },
  async forecast(source, given = {}) {
    needBrowser();
    const wanted = { ...options.loading(given), forecast: true };
    given.signal?.throwIfAborted();
    const connection = await Connection.open(given.worker ?? true);
    try {
      return await connection.call({ call: "load", source: located(source, given), options: wanted }, { signal: given.signal });
    } finally {
      await connection.close();
    }
  },
  async compare(a, b, given = {}) {
    needBrowser();
    const files = { a: options.file("a", a), b: options.file("b", b) };
    const request = options.dumpComparison(a, b, given);
    const { signal, worker = true } = given;
    signal?.throwIfAborted();
    const connection = await Connection.open(worker);
    try {
      return await connection.call({ call: "compareDumps", ...files, request }, { signal });
    } finally {
      connection.die(new DopplerError("closed", "the comparison is over"));
    }
  },
  cache: manager,
};

let asked = false;
/** Asks the browser, once, not to throw away what is stored when it wants room. Only a page can ask. */
function persist() {
  if (!asked && globalThis.document) manager.persist();
  asked = true;
}

/** A folder's address, whole, a model of a Hub, or files. */
function located(source, { hub: at = hub.HUB, token = null }) {
  const files = source?.files ?? source;
  const isFiles = typeof source === "object" && !(source instanceof URL) && typeof files?.[Symbol.iterator] === "function";
  if (isFiles) return { files: [...files] };
  if (typeof source !== "string" && !(source instanceof URL)) {
    throw new DopplerError("invalid", "model: expected the address of a model's folder, a Hub id (org/name), or the files of one");
  }
  const id = typeof source === "string" && hub.parsed(source);
  if (id) return { hub: { hub: at.replace(/\/+$/, ""), token, ...id } };
  try {
    return { url: new URL(source, globalThis.document?.baseURI ?? globalThis.location?.href).href };
  } catch {
    throw new DopplerError("invalid", `model: \`${source}\` is no address of a folder`);
  }
}

let sessions = 1;

export class Model {
  #keeper;
  constructor(keeper) {
    this.#keeper = keeper;
  }
  get info() {
    return this.#keeper.info;
  }
  /** Why the model can no longer be used; null while it can, or will again. */
  get dead() {
    return this.#keeper.dead;
  }
  generate(prompt, given = {}) {
    const opening = { capacity: null, raw: given.raw ?? options.isIds(prompt) };
    const begin = (request, extra) => this.#keeper.call({ call: "generate", session: null, request, options: opening }, extra);
    return new Generation(this.#keeper, begin, prompt, given);
  }
  chat(messages, given = {}) {
    return this.generate(options.messages(messages), given);
  }
  async tokens(prompt, given = {}) {
    return await this.#keeper.call({ call: "tokens", request: options.tokens(prompt, given) });
  }
  async dump(prompt, given = {}) {
    try {
      return (await this.generate(prompt, options.dumping(given)).done).dump;
    } catch (error) {
      // Values that are no numbers end a generation, and are what a dump is for.
      if (error instanceof DopplerError && error.dump) return error.dump;
      throw error;
    }
  }
  async compare(dump, given = {}) {
    const message = { call: "compare", dump: options.file("dump", dump), request: options.comparison(dump, given) };
    return await this.#keeper.call(message, { on: { progress: given.onProgress }, signal: given.signal });
  }
  async session(given = {}) {
    const opening = options.session(given);
    opening.capacity ??= Math.min(4096, this.info.context);
    return await new Session(this.#keeper, opening).opened();
  }
  async close() {
    await this.#keeper.close();
  }
}

export class Session {
  #keeper;
  #opening;
  #session = sessions++;
  #closed = false;
  /** The sequence so far; null where that is not known any more. */
  #ids = [];
  /** The loading of the model that this session is open in. */
  #epoch = null;
  #opened = null;
  constructor(keeper, opening) {
    this.#keeper = keeper;
    this.#opening = opening;
  }
  /** Tokens of the sequence so far. */
  length = 0;
  async opened() {
    await this.#open([]);
    return this;
  }
  generate(prompt, given = {}) {
    if (given.raw !== undefined) throw new DopplerError("invalid", "raw: it is an option of the session, not of one generation");
    return new Generation(this.#keeper, (request, extra) => this.#begin(request, extra), prompt, given);
  }
  chat(messages, given = {}) {
    return this.generate(options.messages(messages), given);
  }
  async close() {
    if (this.#closed || this.#keeper.dead) return;
    this.#closed = true;
    if (this.#epoch === this.#keeper.epoch) await this.#keeper.call({ call: "closeSession", session: this.#session });
  }
  /** A generation; before it, in a model that was loaded again, what the sequence was. */
  async #begin(request, extra) {
    const whole = Boolean(request.prompt.chat);
    if (!this.#keeper.ready) await this.#keeper.settled(extra.signal);
    if (this.#epoch !== this.#keeper.epoch && !this.#keeper.dead) {
      if (this.#closed) throw new DopplerError("closed", "this session was closed");
      if (!this.#ids && !whole) {
        throw new DopplerError("device", "what this session held was lost with the GPU device: open a new one, or give it the whole conversation");
      }
      await (this.#opened ??= this.#open(whole ? [] : this.#ids).finally(() => (this.#opened = null)));
    }
    const settled = (value, error) => this.#take(whole, value, error);
    return await this.#keeper.call({ call: "generate", session: this.#session, request }, { ...extra, on: { ...extra.on, settled } });
  }
  /** Opens it in the engine, with `ids` as its sequence. */
  async #open(ids) {
    await this.#keeper.call({ call: "session", session: this.#session, options: this.#opening });
    const { epoch } = this.#keeper;
    const request = options.generation(ids, { maxTokens: 0 });
    if (ids.length) await this.#keeper.call({ call: "generate", session: this.#session, request });
    this.#epoch = epoch;
  }
  /** What a generation did to the sequence. */
  #take(whole, value, error) {
    if (!error) {
      const before = whole ? [] : this.#ids;
      const ids = before && [...before, ...value.promptIds, ...value.ids];
      this.length = value.sequence;
      this.#ids = ids && ids.length >= value.sequence ? ids.slice(0, value.sequence) : null;
    } else if (!["device", "crash", "closed", "invalid", "config", "template", "tokenizer"].includes(error.kind)) {
      // It may have read some of its prompt. What a loss ended begins again at what was before.
      this.#ids = null;
    }
  }
}

export class Generation {
  #parts = [];
  #wake = [];
  #ended = false;
  #stop = null;
  #stopped = false;
  constructor(keeper, begin, prompt, given) {
    const request = options.generation(prompt, given);
    const { signal, onRecord, onPrefill } = given;
    const on = {
      started: (stop) => {
        this.#stop = stop;
        if (this.#stopped) stop();
      },
      prefill: onPrefill,
      part: (part) => {
        this.#parts.push(part);
        this.#woken();
      },
      records: recorded(onRecord),
    };
    this.done = begin(request, { on, signal });
    const end = () => {
      this.#ended = true;
      this.#woken();
    };
    // Who reads the parts only gets the error there.
    this.done.then(() => {
      keeper.worked();
      end();
    }, end);
  }
  /** Ends it early; `done` then tells what there is, with the reason `interrupted`. */
  stop() {
    if (this.#ended) return;
    this.#stopped = true;
    this.#stop?.();
  }
  async *[Symbol.asyncIterator]() {
    try {
      for (let at = 0; ; at++) {
        while (at >= this.#parts.length && !this.#ended) await new Promise((resolve) => this.#wake.push(resolve));
        if (at >= this.#parts.length) break;
        yield this.#parts[at];
      }
      await this.done;
    } finally {
      this.stop();
    }
  }
  #woken() {
    for (const resolve of this.#wake.splice(0)) resolve();
  }
}
