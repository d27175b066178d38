// Requests to a server, as files are read with them: what may pass is tried again, what may not is an error that says
// what to do. Nothing here knows what the bytes mean.
import { DopplerError } from "./errors.js";

/** How often one request may fail, and the first wait after that, in milliseconds; it doubles. */
const TRIES = 6;
const WAIT = 100;

export const io = (name, message) => new DopplerError("io", `${name}: ${message}`);

/** A failure that may pass. `offline`: no server answered. */
export class Broken extends Error {
  constructor(message, { offline = false, at } = {}) {
    super(message);
    this.offline = offline;
    this.at = at;
  }
}

/** Milliseconds, unless `signal` ends them. */
export const wait = (milliseconds, signal) =>
  new Promise((resolve, reject) => {
    const end = (settle) => (value) => {
      clearTimeout(timer);
      signal.removeEventListener("abort", onAbort);
      settle(value);
    };
    const onAbort = () => end(reject)(signal.reason);
    const timer = setTimeout(end(resolve), milliseconds);
    signal.addEventListener("abort", onAbort);
  });

/** `work`, again where it fails in a way that may pass. */
export async function retried(name, signal, work, tries = TRIES) {
  for (let count = 1; ; count++) {
    try {
      return await work();
    } catch (error) {
      signal.throwIfAborted();
      if (!(error instanceof Broken)) throw error;
      if (count >= tries) throw Object.assign(io(name, `it could not be read after ${count} tries; the last: ${error.message}`), { offline: error.offline });
      await wait(WAIT * 2 ** (count - 1), signal);
    }
  }
}

export async function get(address, headers, signal, method = "GET") {
  try {
    // Not into the browser's cache: its lock on an address would let one range be read at a time.
    return await fetch(address, { method, headers, signal, cache: headers.Range || method === "HEAD" ? "no-store" : "default" });
  } catch (error) {
    throw new Broken(`the connection failed (${error.message})`, { offline: true });
  }
}

/** Not there; or a page where a file was asked for, as some servers answer. */
export const absent = (response) =>
  response.status === 404 || response.status === 403 || (response.ok && /^text\/html/.test(response.headers.get("Content-Type") ?? ""));

/** Whether the server could not answer now, but may later. */
export const passing = ({ status }) => status >= 500 || status === 408 || status === 429;

export const status = (response) => `HTTP status ${response.status} ${response.statusText}`.trim();

export function checked(name, response) {
  if (response.ok) return response;
  if (passing(response)) throw new Broken(status(response));
  throw io(name, status(response));
}

/** Bytes of the whole file: of a `Content-Range`, else of a `Content-Length` where that is all of it as it is. */
export function total(response) {
  const match = /\/(\d+)$/.exec(response.headers.get("Content-Range") ?? "");
  if (match) return Number(match[1]);
  const length = response.headers.get("Content-Length");
  const plain = response.status === 200 && !response.headers.get("Content-Encoding");
  return plain && /^\d+$/.test(length ?? "") ? Number(length) : null;
}

/** What a response says of which version of a file it is a part. */
export const versionOf = (response) => {
  const linked = /^"?([0-9a-f]{64})"?$/i.exec(response.headers.get("X-Linked-ETag") ?? "");
  return {
    sha256: linked ? linked[1].toLowerCase() : null,
    etag: response.headers.get("ETag"),
    modified: response.headers.get("Last-Modified"),
    size: total(response),
  };
};

/** Bytes of the whole file, where another origin does not let `Content-Range` be seen. */
export async function length(name, address, headers, signal) {
  const size = total(checked(name, await get(address, headers, signal, "HEAD")));
  if (size === null) throw io(name, "the server does not say how long it is (Content-Range, Content-Length)");
  return size;
}

/** Puts the body into `out` from `at` on; up to where it came. More than fits is an error. */
export async function drain(response, out, at) {
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
    throw new Broken(error.message, { at });
  }
}
