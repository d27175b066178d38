// A file on a server by range: requests of bounded size, a few at a time, resumed where a connection broke, and kept in
// the cache piece by piece.
import { Sha256 } from "./hash.js";
import { Broken, absent, checked, drain, get, io, retried, total, versionOf } from "./http.js";

/** Bytes of one request, and requests under way at a time. */
const PIECE = 16 << 20;
const AHEAD = 4;
/** Bytes that the first request of a file asks for: enough for most headers. */
export const HEAD = 256 << 10;
/** Ranges that are nearer to each other are read as one. */
const GAP = 64 << 10;
/** Bytes of a whole file that are kept apart from the page's memory at a time. */
const BLOB = 64 << 20;

export const corrupt = (name, expected) =>
  io(name, `the bytes that came are not those of the file: expected SHA-256 ${expected}; what came was thrown away, load again`);

/** A file from a server that knows no ranges: all of it, kept by the browser outside of the page's memory. */
export async function whole(name, response, signal) {
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
export class Source {
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
export class RemoteFile {
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
  /** Whether its hash is known, and compared here. */
  get checked() {
    return Boolean(this.#version.sha256);
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
    const compared = this.#version.sha256 && !this.#version.verified;
    // The header lies between the first bytes and the tensors. Of a manifest's shard everything is compared.
    const all = compared && (this.#version.whole || (joined.length === 1 && joined[0].end === this.size));
    if (all) joined.splice(0, joined.length, { start: 0, end: this.size });
    this.#pieces = [];
    for (const { start, end } of joined) {
      for (let at = Math.max(start, first); at < end; ) {
        const stop = Math.min(at - (at % PIECE) + PIECE, end);
        this.#pieces.push({ start: at, end: stop, bytes: null, from: null });
        at = stop;
      }
    }
    if (all) {
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
    while (at < end) {
      const index = this.#pieces.findIndex((piece) => piece.end > at);
      const planned = index >= 0 && this.#pieces[index]?.start <= at;
      // Headers are read before anything is expected.
      const piece = planned ? this.#pieces[index] : { start: at, end: Math.min(end, at + PIECE), bytes: null, from: null };
      const expected = piece === this.#pieces[index];
      await this.#digested(piece.start);
      for (const next of expected ? this.#pieces.slice(index, index + AHEAD) : [piece]) this.#start(next).catch(() => {});
      const bytes = await piece.bytes;
      this.from = piece.from;
      const stop = Math.min(end, piece.end);
      out.set(bytes.subarray(at - piece.start, stop - piece.start), at - start);
      if (stop === piece.end) await this.#passed(piece);
      at = stop;
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
  /** A piece was read to its end: files are read from front to back, so it is not needed again. */
  async #passed(piece) {
    const bytes = await piece.bytes;
    piece.bytes = null;
    this.#tally.hold(piece.start - piece.end);
    if (this.#digest?.length !== piece.start) return;
    this.#digest.update(bytes);
    await this.#verified();
  }
  /** Goes on with the digest up to byte `end`: of some pieces nothing, or not all, is needed otherwise. */
  async #digested(end) {
    while (this.#digest?.length < end) {
      const piece = this.#pieces.find(({ start }) => start === this.#digest.length);
      this.#start(piece);
      await this.#passed(piece);
    }
  }
  /** Nothing more is needed of it. */
  async finish() {
    await this.#digested(this.size);
  }
  /** With all of it read: it must be the file that it is said to be. */
  async #verified() {
    if (this.#digest.length < this.size) return;
    const found = this.#digest.hex();
    this.#digest = null;
    this.#version = { ...this.#version, verified: found === this.#version.sha256 };
    if (this.#version.verified) return await this.#kept.verified();
    await this.#kept.content?.remove();
    throw corrupt(`${this.name} (SHA-256 ${found})`, this.#version.sha256);
  }
}
