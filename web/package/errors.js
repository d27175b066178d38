// Errors as a page sees them, and as messages between page and worker.

/** What went wrong: a kind and what it is about, to react to; a text for people. */
export class DopplerError extends Error {
  constructor(kind, message, dump, report, about) {
    super(message);
    this.name = "DopplerError";
    this.kind = kind;
    if (about) this.about = about;
    if (dump) this.dump = dump;
    if (report) this.report = report;
  }
}

/** An error of Rust is an `Error` whose name is its kind, one lower-case word. */
const isKind = (name) => /^[a-z]+$/.test(name);

/** Whatever was thrown, as an object that can be posted. */
export function plain(thrown) {
  if (thrown instanceof DopplerError) {
    const { kind, message, dump, report, about } = thrown;
    return { kind, message, dump, report, about };
  }
  if (thrown instanceof Error && isKind(thrown.name)) return { kind: thrown.name, message: thrown.message, about: thrown.about };
  if (thrown instanceof Error) return { kind: "internal", message: `${thrown.name}: ${thrown.message}` };
  return { kind: "internal", message: String(thrown) };
}

/** The error that was posted. */
export const revived = ({ kind, message, dump, report, about }) => new DopplerError(kind, message, dump, report, about);
