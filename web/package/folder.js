// A folder on a server: which of its files are known from the last time, which are asked for, and what is kept of them.
import { Cache, contentKey } from "./cache.js";
import { hex, sha256 } from "./hash.js";
import { Broken, absent, checked, drain, get, io, length, passing, retried, status, versionOf } from "./http.js";
import { HEAD, RemoteFile, Source, corrupt, whole } from "./pieces.js";

/** Whether a file that was `known` is the one that a server tells of now. */
function same(known, now) {
  if (known.size !== null && now.size !== null && known.size !== now.size) return false;
  if (known.sha256 && now.sha256) return known.sha256 === now.sha256;
  if (known.etag || now.etag) return known.etag === now.etag;
  return Boolean(known.modified) && known.modified === now.modified;
}

/** A folder on a server: what is here of it, what it lists, and what is asked for. */
export class Folder {
  #place;
  #signal;
  #cache = null;
  #offline = null;
  /** Whether the server gave a file without saying which version it is. */
  #nameless = false;
  constructor(place, tally, signal) {
    this.#place = place;
    this.tally = tally;
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
    if (this.#cache?.damaged) notes.push(`damaged pieces in the cache that were fetched again: ${this.#cache.damaged}`);
    return notes;
  }
  /** The GGUF file that is asked for, or the end of its name; null for the folder's own model. */
  get wanted() {
    return this.#place.wanted ?? null;
  }
  /** How a file is chosen, in words. */
  get how() {
    return this.#place.how ?? "";
  }
  /** Bytes of each file by name; null where nobody lists them. Of a Hub that does not answer, the files that are here. */
  get sizes() {
    const { listing, offline } = this.#place;
    if (!listing) return offline && this.#cache ? this.#cache.sizes : null;
    return new Map([...listing].map(([name, { size }]) => [name, size]));
  }
  /** Takes `files` as all that there are: each `{ name, bytes, sha256 }`. What is read of one is compared as a whole. */
  list(files) {
    const listing = new Map(files.map(({ name, bytes, sha256 }) => [name, { sha256, git: null, size: bytes, whole: true }]));
    this.#place = { ...this.#place, listing };
    // Their hashes say which version they are.
    this.#nameless = false;
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
      // 501 is a server that knows no such request.
      if (passing(response) && response.status !== 501) throw Object.assign(new Error(status(response)), { offline: true });
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
