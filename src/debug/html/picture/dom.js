// Elements and numbers as text, for the page and for reports. Text goes in as text, never as HTML.

/**
 * An element. `props`: `class`, `text`, `data`, handlers as `onclick`, everything else an attribute; what is null or
 * false is left out.
 */
export function el(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  set(element, props);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function set(element, props) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
}

/** An element of SVG, likewise. */
export function svg(tag, props = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  set(element, props);
  element.append(...children);
  return element;
}

/** A number of a record, which spells what is not finite. */
export function num(value) {
  if (typeof value === "number") return value;
  if (value === "Inf") return Infinity;
  if (value === "-Inf") return -Infinity;
  return NaN;
}

/** Three significant digits: `12.3`, `0.00123`, `1.2e-7`. */
export function short(value) {
  const x = num(value);
  if (Number.isNaN(x)) return "NaN";
  if (!Number.isFinite(x)) return x > 0 ? "Inf" : "-Inf";
  if (x === 0) return "0";
  const size = Math.abs(x);
  if (size >= 1e5 || size < 1e-4) return x.toExponential(1).replace("e+", "e");
  return String(Number(x.toPrecision(3)));
}

/** All digits that an f32 has. */
export function exact(value) {
  const x = num(value);
  if (!Number.isFinite(x)) return short(x);
  return String(Number(x.toPrecision(7)));
}

export const percent = (p) => (p >= 0.9995 ? "100\u00a0%" : p < 0.0005 ? "<0.1\u00a0%" : `${(p * 100).toFixed(1)}\u00a0%`);

/** How many times something is something else: `1.28`, `12,345`. */
export const times = (value) => (num(value) >= 1000 && num(value) < 1e15 ? Math.round(num(value)).toLocaleString("en") : short(value));

/** A token's text with what cannot be seen shown. */
export function visible(text) {
  if (text === null || text === undefined) return "";
  return text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ | $/g, "·");
}

/** `1 token`, `2 tokens`. */
export const many = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;

/** A table in a box that scrolls by itself. `rows`: arrays of texts or elements. */
export function table(caption, head, rows, { numbers = [] } = {}) {
  const cell = (content, i) => el("td", { class: numbers.includes(i) ? "number" : null }, content ?? "");
  return el(
    "div",
    { class: "wide", role: "region", "aria-label": caption, tabindex: "0" },
    el(
      "table",
      {},
      el("caption", { text: caption }),
      el("thead", {}, el("tr", {}, ...head.map((name) => el("th", { scope: "col", text: name })))),
      el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map(cell)))),
    ),
  );
}
