// What was downloaded, kept in the origin's private files (OPFS) for the next time. Below `doppler/`:
//
//   contents/KEY/START-END   bytes START to END of a file, then the SHA-256 of these bytes
//   models/KEY.json          a model's source, when it was last used, and for each of its files which content that is
//
// A content's key comes from its hash where that is known, else from its address and what the server calls its version;
// so equal files of two models are stored once, and a file that changed is another one. A piece says by itself whether it
// is whole: one that an interruption cut or a disk changed has the wrong length or hash, and is dropped. So nothing needs
// to be written atomically, and two pages that write the same piece cannot harm each other.
import { hex, sha256 } from "./hash.js";

const ROOT = "doppler";
/** Bytes of a SHA-256. */
const SUM = 32;
/** What is left to the rest of the origin, in bytes. */
const MARGIN = 32 << 20;

const isFull = (error) => error?.name === "QuotaExceededError";

async function folder(...path) {
  let at = await navigator.storage.getDirectory();
  for (const name of [ROOT, ...path]) at = await at.getDirectoryHandle(name, { create: true });
  return at;
}

async function names(directory) {
  const found = [];
  for await (const name of directory.keys()) found.push(name);
  return found;
}

/** Whether it is gone; what somebody is writing stays. */
const removed = (directory, name) =>
  directory.removeEntry(name, { recursive: true }).then(
    () => true,
    (error) => error.name === "NotFoundError",
  );

const shortKey = async (text) => hex(await sha256(new TextEncoder().encode(text))).slice(0, 32);

/** `work` while nobody else has the lock `name`; null instead if somebody has it and `ifAvailable`. */
async function locked(name, options, work) {
  if (!navigator.locks) return await work();
  return await navigator.locks.request(`${ROOT}/${name}`, options, (lock) => (lock ? work() : null));
}

/** The lock `name`, shared, until the function that this gives is called. */
function held(name) {
  return new Promise((resolve, reject) => {
    const hold = () => new Promise((release) => resolve(release));
    locked(name, { mode: "shared" }, hold).catch(reject);
  });
}

/** Writes `parts` one behind the other, in place of what was there. False if somebody else is writing it. */
async function write(directory, name, parts) {
  const handle = await directory.getFileHandle(name, { create: true });
  try {
    if (!handle.createSyncAccessHandle) return await writeSlowly(handle, parts);
    const file = await handle.createSyncAccessHandle();
    try {
      await file.truncate(0);
      let at = 0;
      for (const part of parts) {
        const count = file.write(part, { at });
        if (count !== part.length) throw new DOMException(`${count} of ${part.length} bytes were written`, "QuotaExceededError");
        at += count;
      }
      await file.flush();
    } finally {
      await file.close();
    }
    return true;
  } catch (error) {
    if (error.name === "NoModificationAllowedError") return false;
    await removed(directory, name);
    throw error;
  }
}

/** Outside of workers. */
async function writeSlowly(handle, parts) {
  const file = await handle.createWritable();
  try {
    for (const part of parts) await file.write(part);
    await file.close();
  } catch (error) {
    await file.abort().catch(() => {});
    throw error;
  }
  return true;
}

/** Every model's record, by its file's name; one that is damaged is as good as none. */
async function records() {
  const directory = await folder("models");
  const found = new Map();
  for (const name of await names(directory)) {
    try {
      found.set(name, JSON.parse(await (await (await directory.getFileHandle(name)).getFile()).text()));
    } catch {
      await removed(directory, name);
    }
  }
  return found;
}

/** Removes contents that no model has any more; the lock `records` is held. */
async function sweep() {
  // Who adds a content has named it in a record before, so contents are listed first.
  const directory = await folder("contents");
  const contents = await names(directory);
  const used = new Set();
  for (const { files } of (await records()).values()) for (const { content } of Object.values(files)) used.add(content);
  for (const name of contents) if (!used.has(name)) await removed(directory, name);
}

/** Removes a model unless a page is using it. */
const evict = (name) =>
  locked(`models/${name}`, { ifAvailable: true }, async () => {
    await locked("records", {}, async () => {
      await removed(await folder("models"), name);
      await sweep();
    });
    return true;
  });

/** Bytes that this origin may still store; null where the browser does not say. */
async function free() {
  try {
    const { quota, usage } = await navigator.storage.estimate();
    return Number.isFinite(quota) && Number.isFinite(usage) ? quota - usage : null;
  } catch {
    return null;
  }
}

/** One file's bytes, as far as they are here. */
class Content {
  #cache;
  #key;
  #directory = null;
  constructor(cache, key) {
    this.#cache = cache;
    this.#key = key;
  }
  async #open() {
    return (this.#directory ??= await folder("contents", this.#key));
  }
  /** The bytes from `start` to `end`, if they were written as one piece and are what was written. */
  async read(start, end) {
    const name = `${start}-${end}`;
    try {
      const directory = await this.#open();
      const file = await (await directory.getFileHandle(name)).getFile();
      if (file.size === end - start + SUM) {
        const all = new Uint8Array(await file.arrayBuffer());
        const bytes = all.subarray(0, end - start);
        const sum = await sha256(bytes);
        if (sum.every((byte, i) => byte === all[bytes.length + i])) return bytes;
        // One that is too short is what an interruption left.
        this.#cache.damaged++;
      }
      await removed(directory, name);
    } catch {
      // Not there, or another page is writing it.
    }
    return null;
  }
  async write(start, bytes) {
    await this.#cache.store(bytes.length, async () => write(await this.#open(), `${start}-${start + bytes.length}`, [bytes, await sha256(bytes)]));
  }
  /** Which pieces are here, by their names; whether they are sound shows when they are read. */
  async pieces() {
    return new Set(await names(await this.#open()).catch(() => []));
  }
  async remove() {
    this.#directory = null;
    await removed(await folder("contents"), this.#key).catch(() => {});
  }
}

/** The cache as one model's loading sees it. */
export class Cache {
  #name;
  #record;
  #release;
  #off = null;
  /** Pieces that were not what had been written. */
  damaged = 0;
  constructor(name, record, release) {
    this.#name = name;
    this.#record = record;
    this.#release = release;
  }
  /**
   * The cache of the model at `source`, which is then in use until `close`; or why there is none: `{ cache, why }`.
   * `title` is for people.
   */
  static async open(source, title) {
    let release = () => {};
    try {
      if (!navigator.storage?.getDirectory) throw new Error(globalThis.isSecureContext === false ? "the page does not come over https" : "it has no private files (OPFS)");
      const name = `${await shortKey(source)}.json`;
      release = await held(`models/${name}`);
      const known = (await locked("records", {}, records)).get(name);
      const record = known?.source === source ? known : { source, files: {} };
      const cache = new Cache(name, { ...record, title, used: Date.now() }, release);
      return { cache, why: null };
    } catch (error) {
      release();
      return { cache: null, why: `this browser keeps nothing here: ${error.message}` };
    }
  }
  /** Why nothing more is stored; null while it is. */
  get off() {
    return this.#off;
  }
  /** What is known of the file `name` from the last time. */
  entry(name) {
    return this.#record.files[name] ?? null;
  }
  /** Bytes of each file that is known from the last time. */
  get sizes() {
    const known = Object.entries(this.#record.files).filter(([, { content }]) => content);
    return new Map(known.map(([name, { size }]) => [name, size ?? null]));
  }
  /** Keeps what is known of a file: which content it is, or that there is none. */
  async remember(name, entry) {
    this.#record.files[name] = entry;
    if (entry.content) await this.#saved();
  }
  async #saved() {
    if (!Object.values(this.#record.files).some(({ content }) => content)) return;
    const save = async () => {
      const directory = await folder("models");
      const other = (await records()).get(this.#name);
      // What another page found meanwhile of other files is as true.
      this.#record.files = { ...(other?.source === this.#record.source ? other.files : {}), ...this.#record.files };
      await write(directory, this.#name, [new TextEncoder().encode(JSON.stringify(this.#record))]);
    };
    await this.store(4096, () => locked("records", {}, save));
  }
  /** `work`, which stores `bytes`; where there is no room after all, other models make some, or storing ends here. */
  async store(bytes, work) {
    if (this.#off) return;
    for (let tries = 1; ; tries++) {
      try {
        return await work();
      } catch (error) {
        if (isFull(error) && tries < 3 && (await this.#evicted())) continue;
        const why = isFull(error) ? "the browser has no more room" : `the browser could not store it (${error.message})`;
        this.#off ??= `${why}; what is missing will be downloaded again`;
        return;
      }
    }
  }
  /** Whether `bytes` more have room, after the models that were not used for longest have made some if that helps. */
  async room(bytes) {
    for (;;) {
      const left = await free();
      if (left === null || left >= bytes + MARGIN) return true;
      if (left + (await this.#others()) >= bytes + MARGIN && (await this.#evicted())) continue;
      this.#off ??= `${megabytes(bytes)} are needed, the browser has room for ${megabytes(Math.max(left - MARGIN, 0))}`;
      return false;
    }
  }
  /** Bytes of contents that are not this model's. */
  async #others() {
    const own = new Set(Object.values(this.#record.files).map(({ content }) => content));
    const found = await sizes().catch(() => new Map());
    return [...found].reduce((sum, [key, bytes]) => sum + (own.has(key) ? 0 : bytes), 0);
  }
  /** Whether a model could be removed. */
  async #evicted() {
    try {
      const others = [...(await records())].filter(([name]) => name !== this.#name);
      others.sort(([, a], [, b]) => a.used - b.used);
      for (const [name] of others) if (await evict(name)) return true;
    } catch {
      // Then there is no room.
    }
    return false;
  }
  content(key) {
    return new Content(this, key);
  }
  /** Loading is over: what was used is marked as used now, and contents of earlier versions go. */
  async finish() {
    await this.#saved();
    await locked("records", {}, sweep).catch(() => {});
  }
  /** The model is no longer in use. */
  close() {
    this.#release();
  }
}

export const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

/** The key of a content by its identity; null where nothing says which version it is. */
export async function contentKey(address, { sha256, git, etag, modified, size }) {
  if (sha256) return `sha256-${sha256}`;
  if (git) return `git-${git}`;
  if (!etag && !modified) return null;
  return `at-${await shortKey([address, etag, modified, size].join("\n"))}`;
}

/** Bytes of each content that is here. */
async function sizes() {
  const directory = await folder("contents");
  const found = new Map();
  for (const key of await names(directory)) {
    let bytes = 0;
    const content = await directory.getDirectoryHandle(key);
    for await (const handle of content.values()) bytes += await handle.getFile().then((file) => file.size, () => 0);
    found.set(key, bytes);
  }
  return found;
}

/** What a page can see of the cache, and take out of it: `Doppler.cache`. */
export const manager = {
  async list() {
    if (!navigator.storage?.getDirectory) return [];
    const bytes = await sizes();
    const shown = ({ title, source, used, files }) => {
      const known = Object.entries(files).filter(([, file]) => file.content);
      const rows = known.map(([name, { size, content }]) => ({ name, size, cached: bytes.get(content) ?? 0 }));
      return { model: title, source, used: new Date(used), bytes: rows.reduce((sum, row) => sum + row.cached, 0), files: rows };
    };
    return [...(await records()).values()].map(shown).sort((a, b) => b.used - a.used);
  },
  async remove(model) {
    if (!navigator.storage?.getDirectory) return 0;
    let count = 0;
    for (const [name, { title, source }] of await records()) if ([title, source].includes(model) && (await evict(name))) count++;
    return count;
  },
  async clear() {
    if (!navigator.storage?.getDirectory) return 0;
    let count = 0;
    for (const name of (await records()).keys()) if (await evict(name)) count++;
    await locked("records", {}, sweep);
    return count;
  },
  async estimate() {
    const { quota = null, usage = null } = (await navigator.storage?.estimate?.().catch(() => null)) ?? {};
    const models = (await manager.list().catch(() => [])).length;
    const bytes = models ? [...(await sizes()).values()].reduce((sum, size) => sum + size, 0) : 0;
    return { models, bytes, usage, quota, persisted: (await navigator.storage?.persisted?.().catch(() => false)) ?? false };
  },
  async persist() {
    if (await navigator.storage?.persisted?.().catch(() => false)) return true;
    return (await navigator.storage?.persist?.().catch(() => false)) ?? false;
  },
};
