// What only the page needs of elements and numbers: its own elements, bytes, files that it gives; and what it shares with
// reports.
import { el } from "./picture/dom.js";

export * from "./picture/dom.js";

/** The element with this id. */
export const $ = (id) => document.getElementById(id);

/** Bytes as people say them. */
export function bytes(count) {
  if (count < 1e3) return `${count} B`;
  const units = ["kB", "MB", "GB", "TB"];
  const power = Math.min(units.length, Math.floor(Math.log10(count) / 3));
  return `${(count / 1000 ** power).toFixed(count / 1000 ** power < 10 ? 1 : 0)} ${units[power - 1]}`;
}

/** `1.2 s`, `340 ms`. */
export const duration = (milliseconds) => (milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(1)} s`);

/** Has the browser save `parts` as a file. */
export function save(name, parts, type) {
  const address = URL.createObjectURL(new Blob(parts, { type }));
  const link = el("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

/** An error's text, of the engine or of the page. */
export const told = (error) => (error?.name === "AbortError" ? "stopped" : (error?.message ?? String(error)));
