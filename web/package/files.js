// A model's files: those of a folder on a server or of a Hub (`folder.js`), or `File`s. Nothing here knows what the bytes
// mean.
import { DopplerError } from "./errors.js";
import { Folder } from "./folder.js";
import { hex, sha256 } from "./hash.js";
import { io } from "./http.js";
import * as hub from "./hub.js";

/** A folder at `source.url`, a model at `source.hub`, or `source.files`. `cached`: keep what is downloaded. */
export async function open(source, signal, { cached = false } = {}) {
  if (source.files) return new Local(source.files);
  if (source.hub) return await new Folder(await hub.find(source.hub, signal), new Tally(), signal).opened(cached);
  const base = new URL(source.url);
  // Of a GGUF file, its folder: other files of its set lie there.
  const file = /[^/]+\.gguf$/i.exec(base.pathname)?.[0] ?? null;
  base.pathname = file ? base.pathname.slice(0, -file.length) : base.pathname.replace(/\/*$/, "/");
  const wanted = file && decodeURIComponent(file);
  const parts = base.pathname.split("/").filter((part) => part && part !== "resolve" && part !== "main");
  const title = wanted ?? decodeURIComponent(parts.at(-1) ?? base.host);
  const place = { base, source: wanted ? new URL(source.url).href : base.href, title, wanted, headers: {}, listing: null, refused: () => null };
  return await new Folder(place, new Tally(), signal).opened(cached);
}

/** Bytes that have come from where, and bytes that were in memory at once. */
class Tally {
  network = 0;
  cache = 0;
  file = 0;
  held = 0;
  peak = 0;
  add(from, bytes) {
    this[from] += bytes;
  }
  hold(bytes) {
    this.held += bytes;
    this.peak = Math.max(this.peak, this.held);
  }
}

/** `File`s from an `<input>`, by name. */
class Local {
  #files;
  tally = new Tally();
  kept = false;
  notes = [];
  constructor(files) {
    this.#files = new Map();
    // Of files of one name, that of the outermost folder.
    const depth = (file) => (file.webkitRelativePath ?? "").split("/").length;
    for (const file of [...files].sort((a, b) => depth(b) - depth(a))) this.#files.set(file.name, file);
    const folder = [...files].map((file) => (file.webkitRelativePath ?? "").split("/")[0]).find(Boolean);
    this.name = folder || (this.#files.size === 1 ? files[0].name : "files");
  }
  wanted = null;
  how = "give its file or files alone";
  /** What a manifest lists, by name. */
  #listing = new Map();
  list(files) {
    this.#listing = new Map(files.map((file) => [file.name, file]));
  }
  /** Bytes of each file by name. */
  get sizes() {
    return new Map([...this.#files].map(([name, { size }]) => [name, size]));
  }
  /** What else there is, for errors. */
  async told() {
    return ` among these files: ${[...this.#files.keys()].sort().slice(0, 12).join(", ") || "none"}`;
  }
  async text(name) {
    const file = this.#files.get(name);
    if (!file) return null;
    const bytes = await attempt(name, () => file.arrayBuffer());
    const expected = this.#listing.get(name)?.sha256;
    const sum = expected && hex(await sha256(bytes));
    if (sum !== expected) {
      throw new DopplerError("format", `${name}: not the file that the manifest lists: its SHA-256 is ${sum}, expected ${expected}; restore it, or convert the model again`);
    }
    return new TextDecoder().decode(bytes);
  }
  async weights(name) {
    const file = this.#files.get(name);
    return file ? new LocalFile(name, file, this.tally) : null;
  }
  async finish() {}
  close() {}
}

async function attempt(name, read) {
  try {
    return await read();
  } catch (error) {
    throw io(name, `it cannot be read (${error.message}); choose it again`);
  }
}

/**
 * A file of which ranges are read; `from` is where the bytes of the last one came from, `checked` whether its hash, where
 * that is known, is compared here.
 */
class LocalFile {
  from = "file";
  checked = false;
  #blob;
  #tally;
  constructor(name, blob, tally) {
    this.name = name;
    this.size = blob.size;
    this.#blob = blob;
    this.#tally = tally;
  }
  /** Says what is going to be read: (start, end, start, …), ascending. */
  async expect() {}
  async finish() {}
  async read(start, end) {
    const bytes = new Uint8Array(await attempt(this.name, () => this.#blob.slice(start, end).arrayBuffer()));
    this.#tally.add("file", bytes.length);
    this.#tally.hold(bytes.length);
    this.#tally.hold(-bytes.length);
    return bytes;
  }
}
