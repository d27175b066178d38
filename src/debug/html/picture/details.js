// The details of one value of a run: its statistics in one step, and its course over layers and steps.
import { barChart, lineChart } from "./chart.js";
import { el, exact, many, short, table } from "./dom.js";
import { nameOf } from "./names.js";

/**
 * The details of the value `at` in `step` of `run`, as elements. `about` is its stage, `{ about, layers }`. `onLayer(layer)`
 * and `onStep(step)` hear what was pressed in a chart. `open`: the table of all steps is open.
 */
export function details({ run, at, step, about, onLayer, onStep, open = false }) {
  const title = el("h3", {}, nameOf(at), " ", el("span", { class: "soft", text: about?.about ?? "" }));
  const stats = run.cell(step, at);
  if (!stats) return [title, el("p", { text: `Step ${step} did not watch it.` })];
  const layers = about?.layers ?? [];
  const charts = el("div", { class: "charts" });
  if (layers.length > 1) {
    const points = layers.map((layer) => ({ x: layer, y: run.cell(step, { ...at, layer })?.rms, name: `L${layer}` }));
    charts.append(figure("rms over layers", lineChart(points, { label: `rms of ${at.stage} over layers`, selected: at.layer, onpick: onLayer })));
  }
  const steps = [...run.steps.keys()].sort((a, b) => a - b);
  if (steps.length > 1) {
    const points = steps.map((s) => ({ x: s, y: run.cell(s, at)?.rms, name: `step ${s}` }));
    charts.append(figure("rms over steps", lineChart(points, { label: `rms of ${nameOf(at)} over steps`, selected: step, onpick: onStep })));
  }
  if (stats.headRms) charts.append(figure("rms by head", heads(stats.headRms)));
  return [title, numbers(stats), charts, el("details", { open }, el("summary", { text: `Every step (${steps.length})` }), bySteps(run, at, steps))];
}

const figure = (caption, picture) => el("figure", {}, el("figcaption", { text: caption }), picture);

function numbers(s) {
  const place = `t${s.token}, d${s.dim}${s.head === null || s.head === undefined ? "" : `, head ${s.head}`}`;
  return stats([
    ["rms", exact(s.rms)], ["largest", `${exact(s.maxAbs)} at ${place}`], ["mean", exact(s.mean)],
    ["range", `${exact(s.min)} to ${exact(s.max)}`], ["elements", `${s.count} of ${many(s.tokens, "token")}`],
    ["NaN, Inf, 0", `${s.nan}, ${s.inf}, ${s.zero}`],
  ]);
}

/** Numbers with their names. */
export const stats = (list) => el("dl", { class: "numbers stats" }, ...list.map(([name, text]) => el("div", {}, el("dt", { text: name }), el("dd", { text }))));

function heads(list) {
  const most = Math.max(...list.map(Number).filter(Number.isFinite), 1e-30);
  const item = (rms, head) => el("li", {}, el("span", { text: `h${head}` }), barChart(Number(rms) / most), el("span", { class: "numbers", text: short(rms) }));
  return el("ol", { class: "bars" }, ...list.map(item));
}

function bySteps(run, at, steps) {
  const row = (step) => {
    const s = run.cell(step, at);
    if (!s) return [String(step)];
    return [String(step), String(s.tokens), short(s.rms), `${short(s.maxAbs)} @t${s.token},d${s.dim}`, short(s.mean), String(s.nan), String(s.inf)];
  };
  return table(`${nameOf(at)} by step`, ["step", "tokens", "rms", "largest", "mean", "NaN", "Inf"], steps.map(row), { numbers: [0, 1, 2, 3, 4, 5, 6] });
}
