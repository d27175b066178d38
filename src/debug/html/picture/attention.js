// Attention, token by token: small maps of all heads of a layer, a large one of the chosen head, and the tokens, shaded by
// how much the chosen token looks at each. The page and the report draw it; where the numbers come from, they know.
import { el, percent, visible } from "./dom.js";

/** The edges of a small and of a large map, in pixels. */
const [SMALL, LARGE] = [88, 420];
/** Orange and magenta on whatever is below: the deeper, the more. */
const [MUCH, NOT_FINITE] = [[221, 111, 31], [190, 30, 160]];

export class AttentionMaps {
  #parts;
  #load;
  #tokens = [];
  /** What is shown: `{ heads, row(head, token) }`, rows of probabilities by position. */
  #shown = null;
  #at = { layer: 0, head: null, token: 0 };
  #asked = 0;

  /** Draws into `root`. `load(layer)` promises `{ heads, row(head, token) }`. */
  constructor(root, load) {
    this.#load = load;
    const layer = el("select", { onchange: () => this.#open(Number(layer.value)) });
    const head = el("select", { onchange: () => this.#choose({ head: head.value === "" ? null : Number(head.value) }) });
    const status = el("p", { class: "soft", role: "status" });
    const small = el("div", { class: "heads", role: "group", "aria-label": "Heads" });
    const large = el("canvas", { class: "attention", role: "img", "aria-label": "Attention: a row for each token that looks, a column for each that is looked at" });
    const strip = el("div", { class: "strip looked", role: "listbox", "aria-label": "Tokens; the chosen one looks at the others", "aria-orientation": "horizontal" });
    const words = el("p", { class: "numbers", "aria-live": "polite" });
    const detail = el("div", { class: "looking" }, large, el("div", {}, words, strip));
    this.#parts = { layer, head, status, small, large, strip, words, detail };
    root.replaceChildren(el("div", { class: "bar" }, el("label", {}, "Layer ", layer), el("label", {}, "Head ", head)), status, small, detail);
    const rowOf = (event) => Math.floor((event.offsetY / large.clientHeight) * this.#tokens.length);
    const columnOf = (event) => Math.floor((event.offsetX / large.clientWidth) * this.#tokens.length);
    for (const name of ["pointermove", "pointerdown"]) large.addEventListener(name, (event) => this.#choose({ token: rowOf(event) }, columnOf(event)));
    strip.addEventListener("pointerover", (event) => this.#hover(event.target));
    strip.addEventListener("click", (event) => this.#hover(event.target));
    strip.addEventListener("keydown", (event) => this.#key(event));
  }

  /** Shows the attention of `tokens` (texts) in `layers` (numbers); the first of them is loaded. */
  async show(tokens, layers, layer = layers[0]) {
    this.#tokens = tokens;
    this.#at.token = tokens.length - 1;
    this.#parts.layer.replaceChildren(...layers.map((l) => el("option", { value: l, text: `L${l}`, selected: l === layer })));
    this.#parts.strip.replaceChildren(...tokens.map((text, i) => el("span", { role: "option", class: "token cell", text: visible(text) || "–", title: `token ${i}` })));
    await this.#open(layer);
  }

  async #open(layer) {
    const { status, small, detail } = this.#parts;
    const mine = ++this.#asked;
    status.textContent = `Reading the attention of layer ${layer}…`;
    try {
      const shown = await this.#load(layer);
      if (mine !== this.#asked) return;
      [this.#shown, this.#at.layer, status.textContent] = [shown, layer, ""];
    } catch (error) {
      if (mine !== this.#asked) return;
      this.#shown = null;
      status.textContent = error?.message ?? String(error);
    }
    small.hidden = detail.hidden = !this.#shown;
    if (!this.#shown) return;
    if (this.#at.head >= this.#shown.heads) this.#at.head = null;
    this.#drawHeads();
    this.#choose({});
  }

  #drawHeads() {
    const { head, small } = this.#parts;
    const numbers = Array.from({ length: this.#shown.heads }, (_, h) => h);
    head.replaceChildren(el("option", { value: "", text: "mean of all" }), ...numbers.map((h) => el("option", { value: h, text: `h${h}` })));
    small.replaceChildren(
      ...numbers.map((h) => {
        const canvas = el("canvas", { class: "attention", "aria-hidden": "true" });
        this.#paint(canvas, (token) => this.#shown.row(h, token), SMALL);
        return el("button", { type: "button", "aria-label": `h${h} of layer ${this.#at.layer}`, onclick: () => this.#choose({ head: this.#at.head === h ? null : h }) }, canvas, `h${h}`);
      }),
    );
  }

  /** The row of `token` of the chosen head, or the mean of all. */
  #row(token) {
    const { heads, row } = this.#shown;
    if (this.#at.head !== null) return row(this.#at.head, token);
    const all = Array.from({ length: heads }, (_, h) => row(h, token));
    return Array.from(all[0], (_, p) => all.reduce((sum, one) => sum + one[p], 0) / heads);
  }

  #choose(to, column = null) {
    if (!this.#shown) return;
    const before = { ...this.#at, painted: this.#parts.large.dataset.of };
    Object.assign(this.#at, to);
    const { token, head, layer } = this.#at;
    if (!(token >= 0 && token < this.#tokens.length)) return void (this.#at.token = before.token);
    const { small, large, strip, words, head: pick } = this.#parts;
    const of = `${this.#asked} ${layer} ${head}`;
    if (before.painted !== of) {
      large.dataset.of = of;
      this.#paint(large, (t) => this.#row(t), LARGE);
      pick.value = head === null ? "" : String(head);
      [...small.children].forEach((button, h) => button.setAttribute("aria-pressed", String(h === head)));
    }
    const row = this.#row(token);
    [...strip.children].forEach((span, i) => {
      const p = row[i] ?? 0;
      span.setAttribute("aria-selected", String(i === token));
      span.setAttribute("aria-label", `token ${i} ${JSON.stringify(this.#tokens[i])}, looked at ${Number.isFinite(p) ? percent(p) : "NaN"}`);
      span.classList.toggle("odd", !Number.isFinite(p));
      span.classList.toggle("column", i === column);
      span.tabIndex = i === token ? 0 : -1;
      span.style.setProperty("--level", `${Math.min(100, 100 * Math.sqrt(Number.isFinite(p) ? p : 1)).toFixed(1)}%`);
    });
    const name = (i) => `“${visible(this.#tokens[i])}” (t${i})`;
    const top = [...row.entries()].sort((a, b) => (Number.isFinite(b[1]) ? b[1] : 2) - (Number.isFinite(a[1]) ? a[1] : 2)).slice(0, 4);
    const told = column === null || column >= row.length ? top : [[column, row[column]]];
    const share = ([i, p]) => `${Number.isFinite(p) ? percent(p) : "NaN"} at ${name(i)}`;
    words.textContent = `L${layer} ${head === null ? "mean of all heads" : `h${head}`}: ${name(token)} looks ${told.map(share).join(", ")}`;
  }

  #hover(target) {
    const i = [...this.#parts.strip.children].indexOf(target);
    if (i >= 0) this.#choose({ token: i });
  }

  #key(event) {
    const [at, last] = [this.#at.token, this.#tokens.length - 1];
    const next = { ArrowLeft: at - 1, ArrowUp: at - 1, ArrowRight: at + 1, ArrowDown: at + 1, Home: 0, End: last }[event.key];
    if (next === undefined || next < 0 || next > last) return;
    event.preventDefault();
    this.#choose({ token: next });
    this.#parts.strip.children[next].focus();
  }

  /** A pixel for each pair of tokens; a small map of many tokens has some of them. */
  #paint(canvas, rowOf, edge) {
    const step = edge === SMALL ? Math.max(1, Math.ceil(this.#tokens.length / (2 * SMALL))) : 1;
    const count = Math.ceil(this.#tokens.length / step);
    canvas.width = canvas.height = count;
    canvas.style.width = `${Math.max(edge, edge === LARGE ? count : 0)}px`;
    const pen = canvas.getContext("2d");
    const image = pen.createImageData(count, count);
    for (let y = 0; y < count; y++) {
      const row = rowOf(y * step);
      for (let x = 0; x * step < row.length; x++) {
        const p = row[x * step];
        const [colour, opacity] = Number.isFinite(p) ? [MUCH, Math.sqrt(Math.max(0, p))] : [NOT_FINITE, 1];
        image.data.set([...colour, 255 * opacity], 4 * (y * count + x));
      }
    }
    pen.putImageData(image, 0, 0);
  }
}

/** What a report holds of one layer: bytes, each the square root of a probability in 254 steps, 255 for NaN. */
export function packed(layer, { heads, row }, tokens) {
  const rows = Array.from({ length: heads }, (_, head) => Array.from({ length: tokens }, (_, token) => row(head, token)));
  const seen = (values) => values.reduce((width, p, i) => (p === 0 ? width : i + 1), 0);
  const widths = Array.from({ length: tokens }, (_, token) => Math.max(...rows.map((of) => seen([...of[token]]))));
  const byte = (p) => (Number.isFinite(p) ? Math.round(254 * Math.sqrt(Math.min(1, Math.max(0, p)))) : 255);
  const bytes = rows.flatMap((of) => of.flatMap((values, token) => [...values].slice(0, widths[token]).map(byte)));
  let text = "";
  for (const b of bytes) text += String.fromCharCode(b);
  return { layer, heads, widths, data: btoa(text) };
}

/** Such a layer as it is drawn. */
export function unpacked({ heads, widths, data }) {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const starts = widths.reduce((list, width) => [...list, list.at(-1) + width], [0]);
  const whole = starts.at(-1);
  const value = (byte) => (byte === 255 ? NaN : (byte / 254) ** 2);
  const row = (head, token) => Array.from(bytes.subarray(head * whole + starts[token], head * whole + starts[token + 1]), value);
  return { heads, row };
}
