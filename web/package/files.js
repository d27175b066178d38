// A model's files by range: from a server, with requests of bounded size, a few at a time, resumed where a connection
// broke, and kept in the browser's cache; or from `File`s. Nothing here knows what the bytes mean.
import { Cache, contentKey } from "./cache.js";
import { Sha256, hex, sha256 } from "./hash.js";
import { Broken, absent, checked, drain, get, io, length, passing, retried, total } from "./http.js";
import * as hub from "./hub.js";

/** Bytes of one request, and requests under way at a time. */
const PIECE = 16 << 20;
const AHEAD = 4;
/** Bytes that the first request of a file asks for: enough for most headers. */
const HEAD = 256 << 10;
/** Ranges that are nearer to each other are read as one. */
const GAP = 64 << 10;
/** Bytes of a whole file that are kept apart from the page's memory at a time. */
const BLOB = 64 << 20;

/** A folder at `source.url`, a model at `source.hub`, or `source.files`. `cached`: keep what is downloaded. */
export async function open(source, signal, { cached = false } = {}) {
  if (source.files) return new Local(source.files);
  if (source.hub) return await new Remote(await hub.find(source.hub, signal), signal).opened(cached);
  const base = new URL(source.url);
  base.pathname = base.pathname.replace(/\/*$/, "/");
  const parts = base.pathname.split("/").filter((part) => part && part !== "resolve" && part !== "main");
  const place = { base, source: base.href, title: decodeURIComponent(parts.at(-1) ?? base.host), headers: {}, listing: null, refused: () => null };
  return await new Remote(place, signal).opened(cached);
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
    this.name = folder || "files";
  }
  /** What else there is, for errors. */
  async told() {
    return ` among these files: ${[...this.#files.keys()].sort().slice(0, 12).join(", ") || "none"}`;
  }
  async text(name) {
    const file = this.#files.get(name);
    return file ? await attempt(name, () => file.text()) : null;
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

/** A file of which ranges are read; `from` is where the bytes of the last one came from. */
class LocalFile {
  from = "file";
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
  async read(start, end) {
    const bytes = new Uint8Array(await attempt(this.name, () => this.#blob.slice(start, end).arrayBuffer()));
    this.#tally.add("file", bytes.length);
    this.#tally.hold(bytes.length);
    this.#tally.hold(-bytes.length);
    return bytes;
  }
}

/** What a response says of which version of a file it is a part. */
const versionOf = (response) => {
  const linked = /^"?([0-9a-f]{64})"?$/i.exec(response.headers.get("X-Linked-ETag") ?? "");
  return {
    sha256: linked ? linked[1].toLowerCase() : null,
    etag: response.headers.get("ETag"),
    modified: response.headers.get("Last-Modified"),
    size: total(response),
  };
};

/** Whether a file that was `known` is the one that a server tells of now. */
function same(known, now) {
  if (known.size !== null && now.size !== null && known.size !== now.size) return false;
  if (known.sha256 && now.sha256) return known.sha256 === now.sha256;
  if (known.etag || now.etag) return known.etag === now.etag;
  return Boolean(known.modified) && known.modified === now.modified;
}

/** A folder on a server: what is here of it, what it lists, and what is asked for. */
class Remote {
  #place;
  #signal;
  #cache = null;
  #offline = null;
  /** Whether the server gave a file without saying which version it is. */
  #nameless = false;
  tally = new Tally();
  constructor(place, signal) {
    this.#place = place;
    this.#signal = signal;
    this.name = place.title;
  }
  #unkept = null;
  async opened(cached) {
    if (!cached) return this;
    const { cache, why } = await Cache.open(this.#place.source, this.#place.title);
    this.#cache = cache;
    if (!cache) this.#unkept = why;
    return this;
  }
  /** Whether it can be loaded from the cache the next time. */
  get kept() {
    return Boolean(this.#cache) && !this.#cache.off && !this.#nameless;
  }
  /** What a user is to know about where bytes came from. */
  get notes() {
    const notes = [];
    const offline = this.#offline ?? this.#place.offline;
    if (offline) notes.push(`from the cache, without asking the server whether it changed: ${offline}`);
    const off = this.#unkept ?? this.#cache?.off;
    if (off) notes.push(`not kept in the cache: ${off}`);
    else if (this.#nameless && this.#cache) notes.push("not kept in the cache: the server gives neither ETag nor Last-Modified, so a change could not be seen");
    if (this.#cache?.damaged) notes.push(`${this.#cache.damaged} damaged pieces in the cache were fetched again`);
    return notes;
  }
  async told() {
    return this.#place.listing ? ` among its files: ${[...this.#place.listing.keys()].sort().slice(0, 12).join(", ") || "none"}` : " at this address (404, 403, or a web page in its place)";
  }
  #address(name) {
    const url = new URL(this.#place.base);
    url.pathname += name.split("/").map(encodeURIComponent).join("/");
    return url;
  }
  /** An answer for `name`, or null where there is no such file. */
  async #asked(name, headers, method = "GET") {
    const response = await get(this.#address(name), { ...this.#place.headers, ...headers }, this.#signal, method);
    const refused = this.#place.refused(name, response);
    if (refused) throw refused;
    return absent(response) ? null : response;
  }
  /**
   * Which content `name` is, as far as that is known without asking for it: from the list of the Hub's model, or from the
   * last time if the server says that it is still so, or says nothing. `{ content: null }` if there is no such file; null
   * if it has to be asked for.
   */
  async #known(name) {
    const entry = this.#cache?.entry(name) ?? null;
    if (this.#place.listing) {
      const listed = this.#place.listing.get(name);
      if (!listed) return { content: null };
      const content = await contentKey(null, listed);
      return content ? { ...listed, content, verified: entry?.content === content && entry.verified } : null;
    }
    if (!entry || this.#place.offline) return entry;
    try {
      if (this.#offline) return entry;
      const response = await retried(name, this.#signal, () => this.#asked(name, {}, "HEAD"), 2);
      if (!response) return { content: null };
      if (passing(response)) throw Object.assign(new Error(`HTTP status ${response.status}`), { offline: true });
      return response.ok && entry.content && same(entry, versionOf(response)) ? entry : null;
    } catch (error) {
      this.#signal.throwIfAborted();
      if (!error.offline) throw error;
      this.#offline ??= error.message;
      return entry;
    }
  }
  /** Keeps which content `name` is; its key, or null if it cannot be told from a later version. */
  async #identified(name, version) {
    const content = await contentKey(this.#address(name).href, version);
    if (!content) this.#nameless = true;
    else if (this.#cache && this.#cache.entry(name)?.content !== content) await this.#cache.remember(name, { ...version, content });
    return content;
  }
  async #absent(name) {
    await this.#cache?.remember(name, { content: null });
    return null;
  }
  /** A small file as text; null if there is none. */
  async text(name) {
    const known = await this.#known(name);
    if (known?.content === null) return await this.#absent(name);
    const here = known && (await this.#cache?.content(known.content).read(0, known.length ?? known.size));
    if (here) {
      this.tally.add("cache", here.length);
      return new TextDecoder().decode(here);
    }
    const found = await retried(name, this.#signal, async () => {
      const response = await this.#asked(name, {});
      if (!response) return null;
      checked(name, response);
      const bytes = await response.arrayBuffer().catch((error) => {
        throw new Broken(`the connection broke (${error.message})`);
      });
      return { bytes: new Uint8Array(bytes), version: known ?? versionOf(response) };
    });
    if (!found) return await this.#absent(name);
    const { bytes, version } = found;
    this.tally.add("network", bytes.length);
    if (version.sha256 && hex(await sha256(bytes)) !== version.sha256) throw corrupt(name, version.sha256);
    const content = await this.#identified(name, { ...version, length: bytes.length });
    if (content) await this.#cache?.content(content).write(0, bytes);
    return new TextDecoder().decode(bytes);
  }
  /** A file of weights; null if there is none. */
  async weights(name) {
    const known = await this.#known(name);
    if (known?.content === null) return await this.#absent(name);
    if (known?.size) return await this.#file(name, known, null);
    const found = await retried(name, this.#signal, async () => {
      const response = await this.#asked(name, { Range: `bytes=0-${HEAD - 1}` });
      if (!response) return null;
      if (response.status === 416) throw io(name, "the file on the server is empty; upload it again");
      checked(name, response);
      const version = versionOf(response);
      if (response.status === 200) {
        const blob = await whole(name, response, this.#signal);
        return { version: { ...version, size: blob.size }, blob };
      }
      version.size ??= await length(name, this.#address(name), this.#place.headers, this.#signal);
      const head = new Uint8Array(Math.min(HEAD, version.size));
      const got = await drain(response, head, 0);
      if (got < head.length) throw new Broken(`it ended after ${got} of ${head.length} bytes`);
      return { version, head };
    });
    return found ? await this.#file(name, found.version, found) : await this.#absent(name);
  }
  async #file(name, version, found) {
    const content = await this.#identified(name, version);
    const source = new Source(name, this.#address(name), this.#place.headers, version, this.#signal, found?.blob ?? null);
    const kept = content && this.#cache ? this.#cache.content(content) : null;
    const verified = () => this.#cache?.remember(name, { ...this.#cache.entry(name), verified: true });
    const room = (bytes) => this.#cache?.room(bytes);
    const file = new RemoteFile(name, version, source, { content: kept, room, verified }, this.tally);
    if (found?.head) await file.begin(found.head);
    return file;
  }
  /** Everything was read. */
  async finish() {
    await this.#cache?.finish();
  }
  /** Nothing will be read any more. */
  close() {
    this.#cache?.close();
  }
}

const corrupt = (name, expected) =>
  io(name, `the bytes that came are not those of the file: expected SHA-256 ${expected}; what came was thrown away, load again`);

/** A file from a server that knows no ranges: all of it, kept by the browser outside of the page's memory. */
async function whole(name, response, signal) {
  const promised = total(response);
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
  if (promised !== null && blob.size !== promised) throw new Broken(`${blob.size} of ${promised} bytes came`);
  return blob;
}

/** Where the bytes of one version of a file on a server come from. */
class Source {
  #name;
  #address;
  #headers;
  #version;
  #signal;
  /** All of it, from a server that knows no ranges. */
  #blob;
  constructor(name, address, headers, version, signal, blob) {
    this.#name = name;
    this.#address = address;
    this.#headers = headers;
    this.#version = version;
    this.#signal = signal;
    this.#blob = blob;
  }
  /** The bytes from `start` to `end`, going on where a connection broke. */
  async read(start, end) {
    const { size } = this.#version;
    const out = new Uint8Array(end - start);
    let at = 0;
    await retried(`${this.#name}, bytes ${start} to ${end} of ${size}`, this.#signal, async () => {
      if (at === out.length) return;
      if (this.#blob) return (at = await this.#copy(out, start, at));
      const headers = { ...this.#headers, Range: `bytes=${start + at}-${end - 1}` };
      const response = await get(this.#address, headers, this.#signal);
      if (absent(response)) throw io(this.#name, "it is no longer on the server");
      this.#compare(checked(this.#name, response));
      if (response.status === 200) {
        // Other pieces are in the cache, and those that are missing come with everything.
        if (this.#blob) response.body.cancel().catch(() => {});
        else this.#blob = whole(this.#name, response, this.#signal);
        return (at = await this.#copy(out, start, at));
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
  /** Fills `out` from `at` on with the bytes of the whole file that begin at `start`. */
  async #copy(out, start, at) {
    const blob = this.#blob;
    try {
      const bytes = await (await blob).slice(start + at, start + out.length).arrayBuffer();
      out.set(new Uint8Array(bytes), at);
      return out.length;
    } catch (error) {
      if (this.#blob === blob) this.#blob = null;
      throw error;
    }
  }
  /** Refuses a part of another version. */
  #compare(response) {
    const [known, now] = [this.#version, versionOf(response)];
    const strong = (version) => version.etag && !version.etag.startsWith("W/");
    const found = (() => {
      if (now.size !== null && now.size !== known.size) return `of ${now.size}`;
      if (response.status !== 206 && now.size === null) return `HTTP status ${response.status}`;
      return strong(known) && strong(now) && known.etag !== now.etag ? `with ETag ${now.etag}, before ${known.etag}` : null;
    })();
    if (found) throw io(this.#name, `it changed on the server while it was read: expected a part of ${known.size} bytes, found one ${found}; load again`);
  }
}

/** A file on a server, read in pieces that are kept. */
class RemoteFile {
  from = "network";
  #source;
  #kept;
  #tally;
  #version;
  /** The first bytes. */
  #head;
  /** What is going to be read, in order: `{ start, end, bytes, from }`, `bytes` a promise once it is on its way. */
  #pieces = [];
  /** The digest of what was read so far, where the whole file's is known and all of it will be read. */
  #digest = null;
  constructor(name, version, source, kept, tally) {
    this.name = name;
    this.size = version.size;
    this.#version = version;
    this.#source = source;
    this.#kept = kept;
    this.#tally = tally;
    this.#head = { start: 0, end: Math.min(HEAD, this.size), bytes: null, from: null };
  }
  /** Takes the first bytes, which have come. */
  async begin(bytes) {
    this.#tally.add("network", bytes.length);
    this.#head.bytes = Promise.resolve(bytes);
    this.#head.from = "network";
    await this.#kept.content?.write(0, bytes);
  }
  async expect(ranges) {
    const joined = [];
    for (let i = 0; i < ranges.length; i += 2) {
      const last = joined.at(-1);
      if (last && ranges[i] <= last.end + GAP) last.end = Math.max(last.end, ranges[i + 1]);
      else joined.push({ start: ranges[i], end: ranges[i + 1] });
    }
    const first = this.#head.end;
    // The header lies between the first bytes and the tensors.
    const all = joined.length === 1 && joined[0].end === this.size;
    if (all && joined[0].start > first && this.#version.sha256 && !this.#version.verified) joined[0].start = first;
    this.#pieces = [];
    for (const { start, end } of joined) {
      for (let at = Math.max(start, first); at < end; ) {
        const stop = Math.min(at - (at % PIECE) + PIECE, end);
        this.#pieces.push({ start: at, end: stop, bytes: null, from: null });
        at = stop;
      }
    }
    if (all && this.#version.sha256 && !this.#version.verified) {
      this.#digest = new Sha256();
      this.#digest.update(await this.#start(this.#head));
      await this.#verified();
    }
    if (!this.#kept.content) return;
    const here = await this.#kept.content.pieces();
    const missing = this.#pieces.filter(({ start, end }) => !here.has(`${start}-${end}`));
    const bytes = missing.reduce((sum, { start, end }) => sum + end - start, 0);
    if (bytes) await this.#kept.room(bytes);
  }
  async read(start, end) {
    const out = new Uint8Array(end - start);
    let at = start;
    if (at < this.#head.end) {
      const bytes = (await this.#start(this.#head)).subarray(start, end);
      this.from = this.#head.from;
      if (bytes.length === out.length) return bytes;
      out.set(bytes);
      at += bytes.length;
    }
    let index = this.#pieces.findIndex((piece) => piece.end > at);
    while (at < end) {
      const piece = index >= 0 && this.#pieces[index]?.start <= at ? this.#pieces[index] : { start: at, end, bytes: null, from: null };
      const expected = piece === this.#pieces[index];
      for (const next of expected ? this.#pieces.slice(index, index + AHEAD) : [piece]) this.#start(next).catch(() => {});
      const bytes = await piece.bytes;
      this.from = piece.from;
      const stop = Math.min(end, piece.end);
      out.set(bytes.subarray(at - piece.start, stop - piece.start), at - start);
      if (stop === piece.end) {
        if (expected) await this.#passed(piece, bytes);
        // Files are read from front to back: what is behind is not needed again.
        piece.bytes = null;
        this.#tally.hold(piece.start - piece.end);
      }
      at = stop;
      index++;
    }
    return out;
  }
  /** The bytes of `piece`: from the cache, or from the server and then into the cache. */
  #start(piece) {
    return (piece.bytes ??= this.#bytes(piece));
  }
  async #bytes(piece) {
    const { start, end } = piece;
    const { content } = this.#kept;
    this.#tally.hold(end - start);
    try {
      const here = await content?.read(start, end);
      piece.from = here ? "cache" : "network";
      this.#tally.add(piece.from, here ? here.length : 0);
      if (here) return here;
      const bytes = await this.#source.read(start, end);
      this.#tally.add("network", bytes.length);
      await content?.write(start, bytes);
      return bytes;
    } catch (error) {
      this.#tally.hold(start - end);
      throw error;
    }
  }
  /** A piece was read to its end. */
  async #passed(piece, bytes) {
    if (!this.#digest || piece.start !== this.#digest.length) return;
    this.#digest.update(bytes);
    await this.#verified();
  }
  /** With all of it read: it must be the file that it is said to be. */
  async #verified() {
    if (this.#digest.length < this.size) return;
    const found = this.#digest.hex();
    this.#digest = null;
    if (found === this.#version.sha256) return await this.#kept.verified();
    await this.#kept.content?.remove();
    throw corrupt(`${this.name} (SHA-256 ${found})`, this.#version.sha256);
  }
}
