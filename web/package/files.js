// A model's files by range: from a server, with requests of bounded size, a few at a time, and resumed where a
// connection broke; or from `File`s. Nothing here knows what the bytes mean.
import { DopplerError } from "./errors.js";

/** Bytes of one request, and requests under way at a time. */
const PIECE = 16 << 20;
const AHEAD = 4;
/** Bytes that the first request of a file asks for: enough for most headers. */
const HEAD = 256 << 10;
/** Ranges that are nearer to each other are read as one. */
const GAP = 64 << 10;
/** How often one request may fail, and the first wait after that, in milliseconds; it doubles. */
const TRIES = 6;
const WAIT = 100;
/** Bytes of a whole file that are kept apart from the page's memory at a time. */
const BLOB = 64 << 20;

/** The files of the folder at `source.url`, or those of `source.files`. */
export const open = (source, signal) => (source.files ? new Local(source.files) : new Remote(source.url, signal));

const io = (name, message) => new DopplerError("io", `${name}: ${message}`);

/** Milliseconds, unless `signal` ends them. */
const wait = (milliseconds, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });

/** A file of which ranges are read. */
class Ranges {
  constructor(name, size) {
    this.name = name;
    this.size = size;
  }
  /** Says what is going to be read: (start, end, start, …), ascending. */
  expect() {}
}

/** `File`s from an `<input>`, by name. */
class Local {
  #files;
  constructor(files) {
    this.#files = new Map();
    // Of files of one name, that of the outermost folder.
    const depth = (file) => (file.webkitRelativePath ?? "").split("/").length;
    for (const file of [...files].sort((a, b) => depth(b) - depth(a))) this.#files.set(file.name, file);
    const folder = [...files].map((file) => (file.webkitRelativePath ?? "").split("/")[0]).find(Boolean);
    this.name = folder || "files";
  }
  /** Names, for errors. */
  async names() {
    return [...this.#files.keys()].sort();
  }
  async text(name) {
    const file = this.#files.get(name);
    return file ? await attempt(name, () => file.text()) : null;
  }
  async weights(name) {
    const file = this.#files.get(name);
    return file ? new LocalFile(name, file) : null;
  }
}

async function attempt(name, read) {
  try {
    return await read();
  } catch (error) {
    throw io(name, `it cannot be read (${error.message}); choose it again`);
  }
}

class LocalFile extends Ranges {
  #blob;
  constructor(name, blob) {
    super(name, blob.size);
    this.#blob = blob;
  }
  async read(start, end) {
    return new Uint8Array(await attempt(this.name, () => this.#blob.slice(start, end).arrayBuffer()));
  }
}

/** A folder on a server. */
class Remote {
  #base;
  #signal;
  constructor(url, signal) {
    this.#base = new URL(url);
    this.#base.pathname = this.#base.pathname.replace(/\/*$/, "/");
    this.#signal = signal;
    const parts = this.#base.pathname.split("/").filter((part) => part && part !== "resolve" && part !== "main");
    this.name = decodeURIComponent(parts.at(-1) ?? this.#base.host);
  }
  async names() {
    return null;
  }
  #address(name) {
    const url = new URL(this.#base);
    url.pathname += name.split("/").map(encodeURIComponent).join("/");
    return url;
  }
  /** A small file as text; null if the server has none. */
  async text(name) {
    const response = await retried(name, this.#signal, async () => {
      const response = await get(this.#address(name), {}, this.#signal);
      if (absent(response)) return null;
      checked(name, response);
      const text = await response.text().catch((error) => {
        throw new Broken(`the connection broke (${error.message})`);
      });
      return { text };
    });
    return response && response.text;
  }
  /** A file of weights; null if the server has none. */
  async weights(name) {
    const address = this.#address(name);
    return await retried(name, this.#signal, async () => {
      const response = await get(address, { Range: `bytes=0-${HEAD - 1}` }, this.#signal);
      if (absent(response)) return null;
      if (response.status === 416) throw io(name, "the file on the server is empty; upload it again");
      checked(name, response);
      if (response.status === 200) return await whole(name, response, this.#signal);
      const size = total(response) ?? (await length(name, address, this.#signal));
      const head = new Uint8Array(Math.min(HEAD, size));
      const got = await drain(response, head, 0);
      if (got < head.length) throw new Broken(`it ended after ${got} of ${head.length} bytes`);
      return new RemoteFile(name, address, size, head, this.#signal);
    });
  }
}

/** A failure that may pass. */
class Broken extends Error {}

/** `work`, again where it fails in a way that may pass. */
async function retried(name, signal, work) {
  for (let tries = 1; ; tries++) {
    try {
      return await work();
    } catch (error) {
      signal.throwIfAborted();
      if (!(error instanceof Broken)) throw error;
      if (tries >= TRIES) throw io(name, `it could not be read after ${tries} tries; the last: ${error.message}`);
      await wait(WAIT * 2 ** (tries - 1), signal);
    }
  }
}

async function get(address, headers, signal, method = "GET") {
  try {
    // Not into the browser's cache: its lock on an address would let one range be read at a time.
    return await fetch(address, { method, headers, signal, cache: headers.Range ? "no-store" : "default" });
  } catch (error) {
    throw new Broken(`the connection failed (${error.message})`);
  }
}

/** Not there; or a page where a file was asked for, as some servers answer. */
const absent = (response) =>
  response.status === 404 || response.status === 403 || (response.ok && /^text\/html/.test(response.headers.get("Content-Type") ?? ""));

function checked(name, response) {
  if (response.ok) return response;
  const text = `HTTP status ${response.status} ${response.statusText}`.trim();
  if (response.status >= 500 || response.status === 408 || response.status === 429) throw new Broken(text);
  throw io(name, text);
}

/** Bytes of the whole file, of a `Content-Range`. */
function total(response) {
  const match = /\/(\d+)$/.exec(response.headers.get("Content-Range") ?? "");
  return match ? Number(match[1]) : null;
}

/** Likewise, where another origin does not let that be seen. */
async function length(name, address, signal) {
  const response = checked(name, await get(address, {}, signal, "HEAD"));
  const size = Number(response.headers.get("Content-Length") ?? NaN);
  if (!Number.isInteger(size)) throw io(name, "the server does not say how long it is (Content-Range, Content-Length)");
  return size;
}

/** Puts the body into `out` from `at` on; up to where it came. More than fits is an error. */
async function drain(response, out, at) {
  const reader = response.body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return at;
      if (at + value.length > out.length) throw new Broken("more bytes came than were asked for");
      out.set(value, at);
      at += value.length;
    }
  } catch (error) {
    reader.cancel().catch(() => {});
    throw Object.assign(error instanceof Broken ? error : new Broken(error.message), { at });
  }
}

/** A file from a server that knows no ranges: all of it, kept by the browser outside of the page's memory. */
async function whole(name, response, signal) {
  const encoded = response.headers.get("Content-Encoding");
  const promised = encoded ? NaN : Number(response.headers.get("Content-Length") ?? NaN);
  const [blobs, chunks] = [[], []];
  let waiting = 0;
  const reader = response.body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      chunks.push(value);
      waiting += value.length;
      if (waiting >= BLOB) {
        blobs.push(new Blob(chunks.splice(0)));
        waiting = 0;
      }
    }
  } catch (error) {
    throw new Broken(`the connection broke (${error.message}), and the server cannot resume`);
  }
  signal.throwIfAborted();
  const blob = new Blob([...blobs, ...chunks]);
  if (Number.isInteger(promised) && blob.size !== promised) throw new Broken(`${blob.size} of ${promised} bytes came`);
  return new LocalFile(name, blob);
}

/** A file on a server that knows ranges. */
class RemoteFile extends Ranges {
  #address;
  #head;
  #signal;
  /** What is going to be read, in order: `{ start, end, bytes }`, `bytes` a promise once it is on its way. */
  #pieces = [];
  constructor(name, address, size, head, signal) {
    super(name, size);
    this.#address = address;
    this.#head = head;
    this.#signal = signal;
  }
  expect(ranges) {
    const joined = [];
    for (let i = 0; i < ranges.length; i += 2) {
      const last = joined.at(-1);
      if (last && ranges[i] <= last.end + GAP) last.end = Math.max(last.end, ranges[i + 1]);
      else joined.push({ start: ranges[i], end: ranges[i + 1] });
    }
    this.#pieces = [];
    for (const { start, end } of joined) {
      for (let at = start; at < end; at += PIECE) this.#pieces.push({ start: at, end: Math.min(at + PIECE, end), bytes: null });
    }
  }
  async read(start, end) {
    if (end <= this.#head.length) return this.#head.slice(start, end);
    let first = this.#pieces.findIndex((piece) => piece.end > start);
    if (first < 0 || this.#pieces[first].start > start) return await this.#range(start, end);
    const out = new Uint8Array(end - start);
    for (let at = start; at < end; first++) {
      const piece = this.#pieces[first];
      if (!piece || piece.start > at) {
        out.set(await this.#range(at, end), at - start);
        break;
      }
      for (const next of this.#pieces.slice(first, first + AHEAD)) this.#start(next);
      const bytes = await piece.bytes;
      const stop = Math.min(end, piece.end);
      out.set(bytes.subarray(at - piece.start, stop - piece.start), at - start);
      // Files are read from front to back: what is behind is not needed again.
      if (stop === piece.end) piece.bytes = null;
      at = stop;
    }
    return out;
  }
  #start(piece) {
    if (piece.bytes) return;
    piece.bytes = this.#range(piece.start, piece.end);
    // Its error is told to whoever reads it.
    piece.bytes.catch(() => {});
  }
  /** The bytes from `start` to `end`, going on where a connection broke. */
  async #range(start, end) {
    const out = new Uint8Array(end - start);
    let at = 0;
    await retried(`${this.name}, bytes ${start} to ${end} of ${this.size}`, this.#signal, async () => {
      if (at === out.length) return;
      const response = await get(this.#address, { Range: `bytes=${start + at}-${end - 1}` }, this.#signal);
      if (absent(response)) throw io(this.name, "it is no longer on the server");
      checked(this.name, response);
      const size = total(response);
      if (response.status !== 206 || (size !== null && size !== this.size)) {
        const found = response.status === 206 ? `${size} bytes` : `HTTP status ${response.status}`;
        throw io(this.name, `it changed on the server while it was read: expected a part of ${this.size} bytes, found ${found}; load again`);
      }
      try {
        at = await drain(response, out, at);
      } catch (error) {
        at = error.at;
        throw new Broken(`the connection broke after ${at} of ${out.length} bytes (${error.message})`);
      }
      if (at < out.length) throw new Broken(`it ended after ${at} of ${out.length} bytes`);
    });
    return out;
  }
}
