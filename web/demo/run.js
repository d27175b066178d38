// One watched run as data: its tokens, statistics by step, candidates, probes, findings. Built from records as the
// engine gives them; it knows no page.
import { num } from "./dom.js";
import { keyOf } from "./picture/names.js";

/** Statistics of two chunks of a prompt together, as the engine joins them. */
function joined(a, b) {
  const finite = (s) => s.count - s.nan - s.inf;
  const [m, n] = [finite(a), finite(b)];
  const mix = (x, y) => (m + n > 0 ? ((m && num(x) * m) + (n && num(y) * n)) / (m + n) : NaN);
  const rank = (s) => [s.nan > 0, s.inf > 0, Number.isFinite(num(s.maxAbs)) ? num(s.maxAbs) : 0];
  const [ra, rb] = [rank(a), rank(b)];
  const larger = rb[0] !== ra[0] ? rb[0] : rb[1] !== ra[1] ? rb[1] : rb[2] > ra[2];
  const { maxAbs, token, dim, head } = larger ? b : a;
  const square = (s, count) => count && num(s.rms) ** 2 * count;
  return {
    ...a,
    maxAbs, token, dim, head,
    mean: mix(a.mean, b.mean),
    rms: m + n > 0 ? Math.sqrt((square(a, m) + square(b, n)) / (m + n)) : NaN,
    min: m && n ? Math.min(num(a.min), num(b.min)) : m ? a.min : b.min,
    max: m && n ? Math.max(num(a.max), num(b.max)) : m ? a.max : b.max,
    count: a.count + b.count, nan: a.nan + b.nan, inf: a.inf + b.inf, zero: a.zero + b.zero,
    tokens: a.tokens + b.tokens,
    headRms: null,
  };
}

export class Run {
  /** Statistics: by step, then by key. */
  steps = new Map();
  /** Records of category `sample`, by step. */
  samples = new Map();
  probes = [];
  /** Every record's line, in order. */
  lines = [];
  findings = [];
  /** Of the lens: by step, records from the first layer on. */
  lens = new Map();
  /** What `done` gave; null before the end. */
  done = null;
  error = null;

  /**
   * `tokens`: the prompt's, each `{ id, text }`. `options`: what `generate` got, for running it again. `prompt`:
   * `{ text, chat }` where the command line can say it, else null.
   */
  constructor({ tokens, options, prompt }) {
    this.tokens = tokens.map((token) => ({ ...token, generated: false }));
    this.promptEnd = tokens.length;
    this.options = options;
    this.prompt = prompt;
  }
  get promptIds() {
    return this.tokens.slice(0, this.promptEnd).map((token) => token.id);
  }
  get generated() {
    return this.tokens.length - this.promptEnd;
  }
  /** The newest step that there are statistics or candidates of. */
  lastStep() {
    return Math.max(0, ...this.steps.keys(), ...this.samples.keys());
  }
  /** Position of the last token that `step` read. */
  positionOf(step) {
    return Math.max(0, this.promptEnd + step - 1);
  }
  /** Ids up to the token that `step` read last. */
  idsAt(step) {
    return this.tokens.slice(0, this.promptEnd + step).map((token) => token.id);
  }
  /** Statistics of a value; undefined where there are none. */
  cell(step, at) {
    return this.steps.get(step)?.get(keyOf(at));
  }
  /** A token that was generated; null ids are the rest of a text. */
  add({ id, text }) {
    if (id === null) return;
    const known = this.samples.get(this.generated)?.chosen;
    this.tokens.push({ id, text: known?.id === id ? known.text : text, generated: true });
  }
  take(record) {
    this.lines.push(record.line);
    switch (record.type) {
      case "trace": {
        if (!this.steps.has(record.step)) this.steps.set(record.step, new Map());
        const cells = this.steps.get(record.step);
        const key = keyOf(record);
        cells.set(key, cells.has(key) ? joined(cells.get(key), record) : record);
        break;
      }
      case "sample": {
        const known = this.samples.get(record.step);
        if (!known || known.top.length < record.top.length) this.samples.set(record.step, record);
        break;
      }
      case "probe":
        this.probes.push(record);
        break;
      case "lens":
        this.lens.set(record.step, [...(this.lens.get(record.step) ?? []), record]);
        break;
      case "anomaly":
        this.findings.push(record);
        break;
    }
  }
}
