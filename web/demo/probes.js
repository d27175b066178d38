// Probes: chosen elements of chosen values, gathered in every step. A form adds them, a table shows what they gave.
import * as chart from "./picture/chart.js";
import { $, el, exact, table, told } from "./dom.js";
import { nameOf } from "./picture/names.js";
import { again } from "./runner.js";
import { on, setProbes, state } from "./state.js";
import { showTab } from "./tabs.js";

let form = null;

export function setUp() {
  form = build();
  const list = el("div");
  const results = el("div");
  $("pane-probes").append(form.element, list, results);
  on("model", () => form.offer());
  on("probes busy run model", () => drawList(list));
  on("data run probes", () => drawResults(results));
  form.offer();
  drawList(list);
}

/** Adds a probe, `{ stage, layer, dims }`, of every token, and shows the pane. */
export function addProbe({ stage, layer, dims }) {
  add({ stage, ...(layer === null || layer === undefined ? {} : { layers: [layer] }), ...(dims ? { dims } : {}) });
  showTab("probes");
}

function add(probe) {
  const count = state.probes.reduce((most, p) => Math.max(most, Number(p.id.slice(1)) || 0), 0);
  setProbes([...state.probes, { id: `p${count + 1}`, ...probe }]);
}

/** Whole numbers of a text like `3, -1 17`; null for none. Throws for anything else. */
function integers(text, what) {
  const words = text.split(/[\s,]+/).filter(Boolean);
  const wrong = words.find((word) => !/^-?\d+$/.test(word));
  if (wrong !== undefined) throw new Error(`${what}: expected whole numbers, found "${wrong}"`);
  return words.length ? words.map(Number) : null;
}

function build() {
  const stage = el("select", { id: "probe-stage" });
  const field = (id, placeholder) => el("input", { id, type: "text", placeholder, autocomplete: "off", inputmode: "numeric" });
  const [layers, tokens, dims] = [field("probe-layers", "every layer"), field("probe-tokens", "every token"), field("probe-dims", "statistics")];
  const problem = el("p", { class: "bad", role: "alert", hidden: true });
  const submit = (event) => {
    event.preventDefault();
    try {
      const given = { layers: integers(layers.value, "Layers"), tokens: integers(tokens.value, "Tokens"), dims: integers(dims.value, "Dims") };
      add({ stage: stage.value, ...Object.fromEntries(Object.entries(given).filter(([, list]) => list)) });
      problem.hidden = true;
    } catch (error) {
      problem.textContent = told(error);
      problem.hidden = false;
    }
  };
  const element = el(
    "form",
    { id: "probe-form", onsubmit: submit },
    el(
      "div",
      { class: "fields" },
      el("label", {}, "Stage ", stage), el("label", {}, "Layers ", layers),
      el("label", {}, "Tokens ", tokens), el("label", {}, "Dims ", dims),
    ),
    el("button", { type: "submit", text: "Add probe" }),
    el("p", { class: "soft", text: "Negative layers and tokens count from the end. Probes print in the next run." }),
    problem,
  );
  const offer = () => {
    const stages = state.model?.info.stageInfo ?? [];
    stage.replaceChildren(...stages.map((s) => el("option", { value: s.name, text: s.name, selected: s.name === "layer_out" })));
  };
  return { element, offer };
}

/** A probe in words. */
function words({ id, stage, layers, tokens, dims }) {
  const part = (name, list) => (list ? ` ${name} ${list.join(", ")}` : "");
  return `${id}: ${stage}${part("layers", layers)}${part("tokens", tokens)}${dims ? part("dims", dims) : " statistics"}`;
}

function drawList(box) {
  const lost = state.lost.length ? el("p", { class: "bad", text: `Removed, as this model has no such stage: ${state.lost.map(words).join("; ")}` }) : "";
  if (!state.probes.length) return box.replaceChildren(lost);
  const item = (probe) => {
    const remove = () => setProbes(state.probes.filter((p) => p !== probe));
    return el("li", {}, words(probe), " ", el("button", { type: "button", class: "link", text: "remove", "aria-label": `Remove probe ${probe.id}`, onclick: remove }));
  };
  const run = () => again().catch((error) => box.append(el("p", { class: "bad", text: told(error) })));
  const button = state.run && el("button", { type: "button", text: "Run again with probes", disabled: state.busy, onclick: run });
  box.replaceChildren(lost, el("ul", { class: "numbers" }, ...state.probes.map(item)), button ?? "");
}

function drawResults(box) {
  const { run } = state;
  if (!run?.probes.length) return box.replaceChildren();
  const elements = new Map();
  for (const record of run.probes) {
    const list = record.values ?? [{ dim: "rms", value: record.stats?.rms }];
    for (const { dim, head, value } of list) {
      const name = `${head === null || head === undefined ? "" : `h${head}.`}${dim}`;
      const key = `${record.id} ${nameOf(record)} ${name}`;
      if (!elements.has(key)) elements.set(key, { id: record.id, at: nameOf(record), name, points: [] });
      elements.get(key).points.push({ x: record.token, y: value, name: `token ${record.token}` });
    }
  }
  const rows = [...elements.values()].map(({ id, at, name, points }) => {
    const last = points.at(-1);
    const picture = points.length > 1 ? chart.lineChart(points, { label: `${at} ${name} over tokens`, selected: last.x }) : "";
    return [id, at, name, exact(last.y), `t${last.x}`, picture];
  });
  box.replaceChildren(table("Probed elements, the newest value and the course over tokens", ["probe", "value", "dim", "newest", "token", "over tokens"], rows, { numbers: [3] }));
}
