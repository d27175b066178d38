// `@doppler/web`: the engine in a page. Types and what everything means are in `index.d.ts`.
import { Connection } from "./connection.js";
import { DopplerError } from "./errors.js";
import * as options from "./options.js";

export { DopplerError };

export const Doppler = {
  async load(source, given = {}) {
    const wanted = options.loading(given);
    const { onProgress, onRecord, signal, worker = true } = given;
    signal?.throwIfAborted();
    const connection = await Connection.open(worker);
    try {
      const message = { call: "load", source: located(source), options: wanted };
      const info = await connection.call(message, { on: { progress: onProgress, records: recorded(onRecord) }, signal });
      return new Model(connection, info);
    } catch (error) {
      connection.die(error);
      throw error;
    }
  },
  async compare(a, b, given = {}) {
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
};

/** Hands records to `onRecord` one by one. */
const recorded = (onRecord) => (json) => onRecord && JSON.parse(json).forEach((record) => onRecord(record));

/** A folder's address, whole, or files. */
function located(source) {
  const files = source?.files ?? source;
  const isFiles = typeof source === "object" && !(source instanceof URL) && typeof files?.[Symbol.iterator] === "function";
  if (isFiles) return { files: [...files] };
  if (typeof source !== "string" && !(source instanceof URL)) {
    throw new DopplerError("invalid", "model: expected the address of a model's folder, or the files of one");
  }
  try {
    return { url: new URL(source, globalThis.document?.baseURI ?? globalThis.location?.href).href };
  } catch {
    throw new DopplerError("invalid", `model: \`${source}\` is no address of a folder`);
  }
}

let sessions = 1;

export class Model {
  #connection;
  constructor(connection, info) {
    this.#connection = connection;
    this.info = info;
  }
  /** Why the model can no longer be used; null while it can. */
  get dead() {
    return this.#connection.dead;
  }
  generate(prompt, given = {}) {
    return new Generation(this.#connection, null, prompt, given, { capacity: null, raw: given.raw ?? options.isIds(prompt) });
  }
  chat(messages, given = {}) {
    return this.generate(options.messages(messages), given);
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
    return await this.#connection.call(message, { on: { progress: given.onProgress }, signal: given.signal });
  }
  async session(given = {}) {
    const opening = options.session(given);
    opening.capacity ??= Math.min(4096, this.info.context);
    const session = sessions++;
    await this.#connection.call({ call: "session", session, options: opening });
    return new Session(this.#connection, session);
  }
  async close() {
    await this.#connection.close();
  }
}

export class Session {
  #connection;
  #session;
  #closed = false;
  /** Tokens of the sequence so far. */
  length = 0;
  constructor(connection, session) {
    this.#connection = connection;
    this.#session = session;
  }
  generate(prompt, given = {}) {
    if (given.raw !== undefined) throw new DopplerError("invalid", "raw: it is an option of the session, not of one generation");
    const generation = new Generation(this.#connection, this.#session, prompt, given);
    generation.done.then(({ sequence }) => (this.length = sequence), () => {});
    return generation;
  }
  chat(messages, given = {}) {
    return this.generate(options.messages(messages), given);
  }
  async close() {
    if (this.#closed || this.#connection.dead) return;
    this.#closed = true;
    await this.#connection.call({ call: "closeSession", session: this.#session });
  }
}

export class Generation {
  #connection;
  #parts = [];
  #wake = [];
  #ended = false;
  #id = null;
  constructor(connection, session, prompt, given, opening) {
    const request = options.generation(prompt, given);
    const { signal, onRecord, onPrefill } = given;
    const on = {
      started: (id) => (this.#id = id),
      prefill: onPrefill,
      part: (part) => {
        this.#parts.push(part);
        this.#woken();
      },
      records: recorded(onRecord),
    };
    this.#connection = connection;
    this.done = connection.call({ call: "generate", session, request, options: opening }, { on, signal });
    const end = () => {
      this.#ended = true;
      this.#woken();
    };
    // Who reads the parts only gets the error there.
    this.done.then(end, end);
  }
  /** Ends it early; `done` then tells what there is, with the reason `interrupted`. */
  stop() {
    if (!this.#ended) this.#connection.stop(this.#id);
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
