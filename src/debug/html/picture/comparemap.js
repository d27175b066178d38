// The map of a comparison: how many rounding floors each value is off, layers by stages; the first that differs is
// framed. The page and the report draw it from a report as JSON.
import { el, exact, short, times } from "./dom.js";
import { stats } from "./details.js";
import { HeatMap } from "./heatmap.js";
import { keyOf, nameOf } from "./names.js";

/** Where a line is: `at token 3, dim 7, head 1`. */
export function spotOf({ token, head, dim }) {
  const parts = [["token", token], ["head", head], ["dim", dim]].filter(([, at]) => at !== null && at !== undefined);
  return parts.length ? ` at ${parts.map(([name, at]) => `${name} ${at}`).join(", ")}` : "";
}

/** Up to what is allowed no colour; from there to a million times as much on a logarithmic scale. */
function off(times, allowed) {
  const x = Number(times);
  if (Number.isNaN(x)) return 1;
  return x <= allowed ? 0 : Math.min(1, 0.25 + (0.75 * Math.log10(x / allowed)) / 6);
}

/** Draws `report` into `root`. `order`: names of stages in the order of computation. What `focus(at)` puts the cursor on. */
export function compareMap(root, report, order) {
  // Of a value the worst of its parts: watched, and as a run computes it that nobody watches.
  const byKey = new Map();
  for (const s of report.stages) {
    const known = byKey.get(keyOf(s));
    if (!known || Number(s.times_floor) > Number(known.times_floor) || (s.diverged && !known.diverged)) byKey.set(keyOf(s), s);
  }
  const found = (row, column) => byKey.get(keyOf({ stage: column.id, layer: row.layer }));
  const digits = el("input", { type: "checkbox" });
  const first = report.first_divergence;
  const cell = (row, column) => {
    const s = found(row, column);
    if (!s) return null;
    const mark = Boolean(first) && first.stage === s.stage && (first.layer ?? null) === (s.layer ?? null);
    const label = `${nameOf(s)}: ${times(s.times_floor)} floors${spotOf(s)}${s.diverged ? ", differs" : ""}${mark ? ", the first" : ""}`;
    return { level: off(s.times_floor, report.allowed), text: digits.checked ? times(s.times_floor) : "", label, mark, first: mark, odd: s.diverged && !Number.isFinite(Number(s.times_floor)) };
  };
  const line = el("div", { class: "details" }, el("p", { class: "empty", text: "Press a cell for its numbers." }));
  const open = (row, column) => line.replaceChildren(...stageLine(found(row, column), report.allowed));
  const [layered, outside] = [report.stages.filter((s) => s.layer !== null), report.stages.filter((s) => s.layer === null)];
  const columns = (list) => {
    const names = [...new Set(list.map((s) => s.stage))];
    // A comparison has values that are none of the model's stages: tokens that were chosen.
    return [...order.filter((name) => names.includes(name)), ...names.filter((name) => !order.includes(name))].map((id) => ({ id, label: id }));
  };
  const layers = [...new Set(layered.map((s) => s.layer))].sort((a, b) => a - b);
  const maps = el("div", { class: "maps" });
  const drawn = [];
  const add = (label, rows, list) => {
    if (!list.length) return null;
    const box = maps.appendChild(el("div", { class: "wide" }));
    const grid = new HeatMap(box, { label, onOpen: open });
    drawn.push(() => grid.show({ rows, columns: columns(list), cell, digits: digits.checked }));
    return grid;
  };
  const inside = add("Distance in rounding floors, layers by stages", layers.map((layer) => ({ id: layer, label: `L${layer}`, layer })), layered);
  const once = add("Distance in rounding floors, stages outside layers", [{ id: "model", label: "model", layer: null }], outside);
  const draw = () => drawn.forEach((show) => show());
  digits.addEventListener("change", draw);
  draw();
  const about = `No colour: within ${report.allowed} floors. Orange: beyond, full at a million times that. ▲ and the frame: the first. Press a cell for its numbers.`;
  const map = el("div", {}, el("div", { class: "bar" }, el("label", { class: "check" }, digits, " numbers")), maps, el("p", { class: "soft", text: about }));
  root.replaceChildren(el("div", { class: "besides" }, el("div", { class: "beside" }, map, line)));
  return {
    focus(at) {
      (at.layer === null ? once : inside)?.focus(at.layer ?? "model", at.stage);
      const s = byKey.get(keyOf(at));
      if (s) line.replaceChildren(...stageLine(s, report.allowed));
    },
  };
}

/** All numbers of one line, and what each token is off. */
function stageLine(s, allowed) {
  const numbers = stats([
    ["distance", `${times(s.times_floor)} floors${spotOf(s)}`], ["relative L2", short(s.relative_l2)], ["floor", short(s.floor) + (s.estimated_floor ? " (estimated)" : "")],
    ["largest difference", short(s.max_abs)], ["cosine", exact(s.cosine)], ["A and B there", s.a === null ? "–" : `${exact(s.a)} and ${exact(s.b)}`],
  ]);
  const parts = [el("h3", { text: nameOf(s) }), numbers];
  if (s.tokens?.length) {
    const token = (x, i) => {
      const span = el("span", { title: `token ${i}: ${times(x)} floors`, class: "cell" });
      span.style.setProperty("--level", `${(off(x, allowed) * 100).toFixed(1)}%`);
      return span;
    };
    const worst = s.tokens.filter((x) => !(Number(x) <= allowed)).length;
    parts.push(el("p", { class: "soft", text: `Every token; ${worst} of ${s.tokens.length} are beyond ${allowed} floors.` }), el("div", { class: "floors", "aria-hidden": "true" }, ...s.tokens.map(token)));
  }
  return parts;
}
