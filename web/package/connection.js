// The page's end of the conversation with `engine.js`: calls and their answers, what comes in between, and the end of
// everything when the engine dies.
import { DopplerError, revived } from "./errors.js";

/** Hands records, which come as JSON, to `onRecord` one by one. */
export const recorded = (onRecord) => (json) => onRecord && JSON.parse(json).forEach((record) => onRecord(record));

export class Connection {
  #port;
  #calls = new Map();
  #next = 1;
  #dead = null;
  #end;
  /** Told that the device is lost, and that everything has ended. */
  onLost = () => {};
  onDead = () => {};
  constructor(port, end) {
    this.#port = port;
    this.#end = end;
    port.onmessage = ({ data }) => this.#take(data);
    port.onmessageerror = () => this.die(new DopplerError("crash", "a message of the engine could not be read"));
  }
  /** A connection to a worker of the package, to one that the page made, or to an engine beside the page. */
  static async open(worker) {
    if (worker === false) {
      const { serve } = await import("./engine.js");
      const channel = new MessageChannel();
      serve(channel.port1);
      return new Connection(channel.port2, () => channel.port2.close());
    }
    if (worker === true && typeof Worker === "undefined") return await Connection.open(false);
    if (worker === true) worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module", name: "doppler" });
    const connection = new Connection(worker, () => worker.terminate());
    worker.addEventListener("error", (event) => {
      const where = event.filename ? ` (${event.filename}:${event.lineno})` : "";
      const message = event.message ? `the engine's worker crashed: ${event.message}${where}` : "the engine's worker could not be started: is worker.js beside index.js?";
      connection.die(new DopplerError("crash", `${message}; load the model again`));
    });
    return connection;
  }
  /** Why nothing works any more; null while it does. */
  get dead() {
    return this.#dead;
  }
  /**
   * A promise of the answer. `on` gets what comes before it: an object with a function per kind of message; and
   * `settled` the answer or the error of the engine, also where the promise has ended before. `signal` ends it, with the
   * signal's own reason.
   */
  call(message, { on = {}, signal } = {}) {
    return new Promise((resolve, reject) => {
      if (this.#dead) return reject(this.#dead);
      if (signal?.aborted) return reject(signal.reason);
      const id = this.#next++;
      const onAbort = () => {
        this.stop(id);
        ended(reject)(signal.reason);
      };
      const ended = (settle) => (value) => {
        signal?.removeEventListener("abort", onAbort);
        settle(value);
        // The engine's own answer is still to come.
        const call = this.#calls.get(id);
        if (call) this.#calls.set(id, { on: { settled: call.on.settled }, resolve() {}, reject() {} });
      };
      signal?.addEventListener("abort", onAbort);
      this.#calls.set(id, { on, resolve: ended(resolve), reject: ended(reject) });
      on.started?.(id);
      this.#port.postMessage({ ...message, id });
    });
  }
  /** Asks that call `id` end early. */
  stop(id) {
    if (!this.#dead) this.#port.postMessage({ call: "abort", of: id });
  }
  #take(data) {
    if (data.fatal) return this.die(revived(data.fatal));
    if (data.lost) return this.onLost(data.lost);
    const call = this.#calls.get(data.id);
    if (!call) return;
    if ("error" in data) return this.#settle(data.id, null, revived(data.error));
    if ("value" in data) return this.#settle(data.id, data.value, null);
    for (const kind of ["progress", "prefill", "part", "records"]) {
      if (!(kind in data)) continue;
      try {
        call.on[kind]?.(data[kind]);
      } catch (error) {
        // What the page's own callback throws is the page's to see.
        this.stop(data.id);
        call.reject(error);
      }
    }
  }
  #settle(id, value, error) {
    const call = this.#calls.get(id);
    this.#calls.delete(id);
    call.on.settled?.(value, error);
    if (error) call.reject(error);
    else call.resolve(value);
  }
  /** Ends all calls that are under way by `error`. */
  fail(error) {
    for (const id of [...this.#calls.keys()]) this.#settle(id, null, error);
  }
  /** Ends everything by `error`. */
  die(error) {
    if (this.#dead) return;
    this.#dead = error;
    this.onDead(error);
    this.fail(error);
    this.#end();
  }
  /** As `die`, after the engine has let go of what it holds. */
  async close() {
    if (this.#dead) return;
    const closed = this.call({ call: "close" }).catch(() => {});
    const error = new DopplerError("closed", "the model was closed");
    const last = [...this.#calls.keys()].at(-1);
    for (const [id, call] of [...this.#calls]) if (id !== last) call.reject(error);
    await closed;
    this.die(error);
  }
}
