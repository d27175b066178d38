// The map of a run: layers by stages in colours of their size, for one step, with its controls and its legend. The page
// and the report draw it. It knows a run as data, not where that came from.
import { el, num, short } from "./dom.js";
import { HeatMap } from "./heatmap.js";
import { keyOf, nameOf } from "./names.js";
import { firstOdd, legend, levels, odd } from "./scale.js";

const MEASURES = [["rms", "size (rms)"], ["maxAbs", "largest magnitude"], ["mean", "mean"], ["odd", "NaN and Inf"], ["change", "change since the last token"]];
const REFERENCES = [["layers", "the same stage in other layers"], ["all", "everything shown"]];

export class RunMap {
  #layers;
  #outside;
  #view = null;
  #parts;

  /** Draws into `root`. `onOpen(at)`: a cell was pressed. `controls` stand beside those of the map. */
  constructor(root, { onOpen, controls = [] }) {
    const choice = (id, list) => el("select", { id }, ...list.map(([value, text]) => el("option", { value, text })));
    const measure = choice("measure", MEASURES);
    const against = choice("against", REFERENCES);
    const digits = el("input", { type: "checkbox", id: "digits" });
    const [heat, outside] = [el("div", { id: "heat", class: "wide" }), el("div", { id: "outside", class: "wide" })];
    const [scale, readout] = [el("div", { id: "legend" }), el("p", { class: "readout numbers", text: HELP })];
    const bar = el("div", { class: "bar" }, ...controls, el("label", {}, "Show ", measure), el("label", {}, "against ", against), el("label", { class: "check" }, digits, " numbers"));
    this.#parts = { measure, against, digits, outside, scale, readout };
    root.append(bar, el("div", { class: "maps" }, heat, outside), scale, readout);
    const open = (row, column) => onOpen({ stage: column.id, layer: row.layer });
    const move = (row, column) => this.#readOut({ stage: column.id, layer: row.layer });
    this.#layers = new HeatMap(heat, { label: "Layers by stages", onOpen: open, onMove: move });
    this.#outside = new HeatMap(outside, { label: "Stages outside layers", onOpen: open, onMove: move });
    for (const control of [measure, against, digits]) control.addEventListener("change", () => this.#view && this.show(this.#view));
  }

  /**
   * Shows `step` of `run`: `{ steps, findings, cell(step, at) }`. `at` is the chosen value. `stages` are the model's, as
   * `{ name, about, layers }`, `layers` how many layers it has.
   */
  show(view) {
    this.#view = view;
    const { run, step, at: chosen, stages, layers } = view;
    const { measure, against, digits, outside, scale } = this.#parts;
    const [measured, reference, numbers] = [measure.value, against.value, digits.checked];
    against.disabled = measured !== "rms" && measured !== "maxAbs";
    const level = levels(run, step, measured, reference);
    const marked = new Set(run.findings.filter((f) => f.step === step && f.stage).map((f) => nameOf(f)));
    const worst = firstOdd(run, stages, layers);
    const isFirst = (at) => worst !== null && worst.step === step && keyOf(worst.at) === keyOf(at);
    const cell = (row, column) => {
      const at = { stage: column.id, layer: row.layer };
      const found = run.cell(step, at);
      if (!found) return null;
      const [mark, first] = [marked.has(nameOf(at)), isFirst(at)];
      const selected = chosen?.stage === at.stage && chosen?.layer === at.layer;
      const text = odd(found) && !numbers ? "!" : numbers ? digit(run, step, found, measured, at) : "";
      const label = describe(found, at) + (mark ? ", anomaly" : "") + (first ? ", the first that is no finite number" : "");
      return { level: level(at), text, label, odd: odd(found), mark, first, selected };
    };
    const seen = new Set([...(run.steps.get(step)?.values() ?? [])].map((c) => c.stage));
    const columns = (perLayer) => stages.filter((s) => Boolean(s.layers) === perLayer && seen.has(s.name)).map((s) => ({ id: s.name, label: s.name, about: s.about }));
    const rows = Array.from({ length: layers }, (_, layer) => ({ id: layer, label: `L${layer}`, layer }));
    this.#layers.show({ rows, columns: columns(true), cell, digits: numbers });
    const once = columns(false);
    outside.hidden = !once.length;
    this.#outside.show({ rows: [{ id: "model", label: "model", layer: null }], columns: once, cell, digits: numbers });
    drawLegend(scale, legend(measured, reference));
  }

  /** Puts the cursor on a value. */
  focus(at) {
    const map = at.layer === null ? this.#outside : this.#layers;
    map.focus(at.layer ?? "model", at.stage);
  }

  #readOut(at) {
    const found = this.#view?.run.cell(this.#view.step, at);
    if (found) this.#parts.readout.textContent = describe(found, at);
  }
}

const HELP = "Arrow keys move between cells, Enter opens one.";

/** A cell's number as the map shows it. */
function digit(run, step, found, measure, at) {
  if (measure === "odd") return String(found.nan + found.inf);
  if (measure !== "change") return short(found[measure]);
  const before = num(run.cell(step - 1, at)?.rms);
  return before > 0 ? `×${short(num(found.rms) / before)}` : "–";
}

/** A cell in words, for its name. */
function describe(s, at) {
  const head = s.head === null || s.head === undefined ? "" : ` head ${s.head}`;
  return `${nameOf(at)}: rms ${short(s.rms)}, largest ${short(s.maxAbs)} at token ${s.token} dim ${s.dim}${head}, mean ${short(s.mean)}, NaN ${s.nan}, Inf ${s.inf}`;
}

function drawLegend(box, { low, middle, high, about }) {
  const key = `${low}|${middle}|${high}|${about}`;
  if (box.dataset.key === key) return;
  box.dataset.key = key;
  box.replaceChildren(
    el("div", { class: "scale", "aria-hidden": "true" }, el("span", { text: low }), el("span", { class: "colours" }, el("span", { text: middle })), el("span", { text: high })),
    el("p", { class: "soft", text: about }),
  );
}
