// A model that stays loaded: where its device is lost, or its worker crashes, it is loaded again, and calls that come
// later wait for that. What was under way is rejected.
import { Connection, recorded } from "./connection.js";
import { DopplerError } from "./errors.js";

/** How often in a row, without a generation that ends well in between, a model is loaded again. */
const LOSSES = 3;
/** Milliseconds before the second try to load it again; the next waits are longer. */
const WAIT = 500;

export class Keeper {
  #source;
  #wanted;
  #given;
  #connection = null;
  #dead = null;
  #losses = 0;
  /** The promise of the loading that is under way. */
  #loading = null;
  /** How often it has been loaded: what an earlier loading held is gone. */
  epoch = 0;
  info = null;
  constructor(source, wanted, given) {
    this.#source = source;
    this.#wanted = wanted;
    this.#given = given;
  }
  /** Loads the model for the first time. */
  async open() {
    await this.#connect();
    try {
      await this.#load({ signal: this.#given.signal });
    } catch (error) {
      this.#end(error);
      throw error;
    }
    return this;
  }
  /** Why the model can no longer be used; null while it can, or will again. */
  get dead() {
    return this.#dead;
  }
  /** Whether a call would begin at once. */
  get ready() {
    return this.#loading === null;
  }
  /** Resolves when calls would begin at once. */
  async settled(signal) {
    signal?.throwIfAborted();
    while (this.#loading) {
      let stop;
      const aborted = new Promise((_, reject) => signal?.addEventListener("abort", (stop = () => reject(signal.reason))));
      try {
        await Promise.race([this.#loading, aborted]);
      } finally {
        signal?.removeEventListener("abort", stop);
      }
    }
  }
  /** As `Connection.call`; `on.started` is given how to end the call early. */
  async call(message, extra = {}) {
    if (this.#loading) await this.settled(extra.signal);
    if (this.#dead) throw this.#dead;
    const connection = this.#connection;
    const started = (id) => extra.on?.started?.(() => connection.stop(id));
    return await connection.call(message, { ...extra, on: { ...extra.on, started } });
  }
  /** A generation has ended well: what was lost before does not count any more. */
  worked() {
    this.#losses = 0;
  }
  async close() {
    this.#dead ??= new DopplerError("closed", "the model was closed");
    await this.#connection?.close();
  }
  async #connect() {
    const connection = await Connection.open(this.#given.worker ?? true);
    connection.onLost = ({ reason, message }) => this.#lost("device", `the GPU device was lost (${reason}): ${message || "the browser says no more"}`, reason);
    connection.onDead = (error) => this.#connection === connection && this.#lost(error.kind, error.message, error.kind);
    this.#connection = connection;
  }
  async #load(extra) {
    const message = { call: "load", source: this.#source, options: this.#wanted };
    const on = { progress: this.#given.onProgress, records: recorded(this.#given.onRecord) };
    this.info = await this.#connection.call(message, { on, ...extra });
    this.epoch++;
  }
  /** The device, or the whole engine, is gone. */
  #lost(kind, message, reason) {
    // What happens while the model is being loaded is told by that.
    if (this.#dead || !this.epoch) return;
    // The worker of a page, and an engine beside it, cannot be started again.
    const startable = kind === "device" || (kind === "crash" && (this.#given.worker ?? true) === true);
    const recovering = this.#given.recover !== false && startable && this.#losses < LOSSES;
    const enough = this.#losses >= LOSSES ? `, ${this.#losses + 1} times in a row` : "";
    const told = message.replace(/; load the model again$/, "");
    const error = new DopplerError(kind, `${told}${enough}; ${recovering ? "the model is being loaded again" : "load the model again"}`);
    if (!recovering) this.#dead = error;
    else if (!this.#loading) this.#loading = this.#again(error).finally(() => (this.#loading = null));
    this.#connection.fail(error);
    if (!recovering) this.#end(error);
    tell(this.#given.onDeviceLost, { kind, reason, message: error.message, recovering });
  }
  /** Loads it again, in a new worker if that crashed. Never rejects: a model that cannot be loaded is dead. */
  async #again(cause) {
    for (;;) {
      this.#losses++;
      try {
        // Whoever is told of the loss is told before the loading.
        await null;
        if (this.#connection.dead) await this.#connect();
        else await this.#connection.call({ call: "close" });
        await this.#load({});
        return;
      } catch (error) {
        if (this.#dead) return;
        if (this.#losses >= LOSSES || !["device", "crash"].includes(error.kind)) {
          this.#end(new DopplerError(error.kind ?? "internal", `${cause.message}, which failed: ${error.message}`));
          return;
        }
        await new Promise((resolve) => setTimeout(resolve, WAIT * 2 ** (this.#losses - 1)));
      }
    }
  }
  #end(error) {
    this.#dead ??= error;
    this.#connection.die(error);
  }
}

/** What the page's own function throws is the page's to see. */
function tell(listener, value) {
  if (listener) queueMicrotask(() => listener(value));
}
