// Errors as a page sees them, and as messages between page and worker.

/** What went wrong: a kind to react to, a text for people. */
export class DopplerError extends Error {
  constructor(kind, message, dump, report) {
    super(message);
    this.name = "DopplerError";
    this.kind = kind;
    if (dump) this.dump = dump;
    if (report) this.report = report;
  }
}

/** An error of Rust is an `Error` whose name is its kind, one lower-case word. */
const isKind = (name) => /^[a-z]+$/.test(name);

/** Whatever was thrown, as an object that can be posted. */
export function plain(thrown) {
  if (thrown instanceof DopplerError) return { kind: thrown.kind, message: thrown.message, dump: thrown.dump, report: thrown.report };
  if (thrown instanceof Error && isKind(thrown.name)) return { kind: thrown.name, message: thrown.message };
  if (thrown instanceof Error) return { kind: "internal", message: `${thrown.name}: ${thrown.message}` };
  return { kind: "internal", message: String(thrown) };
}

/** The error that was posted. */
export const revived = ({ kind, message, dump, report }) => new DopplerError(kind, message, dump, report);
