// The report's own part: the run that it holds as JSON, its map with the details of a cell beside it, and addresses like
// `#at-0-layer.3.ffn_out`, which findings link to.
import { details } from "./details.js";
import { el, visible } from "./dom.js";
import { RunMap } from "./map.js";
import { keyOf, nameOf, placeOf } from "./names.js";
import { firstOdd } from "./scale.js";

/** Draws a run. `steps`: of each, its number and its cells by key, whose numbers are in the order of `names`. */
function drawRun({ names, steps, stages, layers, findings, reads }) {
  const cellOf = (key, values) => ({ ...placeOf(key), ...Object.fromEntries(names.map((name, i) => [name, values[i]])) });
  const run = { findings, steps: new Map(), cell: (step, at) => run.steps.get(step)?.get(keyOf(at)) };
  for (const [step, cells] of steps) run.steps.set(step, new Map(Object.entries(cells).map(([key, values]) => [key, cellOf(key, values)])));
  const numbers = [...run.steps.keys()];
  let [step, at] = [numbers[0], null];
  const words = (s) => (s === 0 ? "the prompt" : `step ${s}${reads[s] ? `, which reads “${visible(reads[s])}”` : ""}`);
  const pick = el("select", { id: "step", autocomplete: "off" }, ...numbers.map((s) => el("option", { value: s, text: words(s) })));
  const [root, pane] = [el("div", { id: "map" }), el("div", { class: "details", id: "pane-stage" })];
  const map = new RunMap(root, { onOpen: (place) => go({ at: place }), controls: numbers.length > 1 ? [el("label", {}, "Of ", pick)] : [] });
  const go = (to) => {
    [step, at] = [to.step ?? step, to.at ?? at];
    pick.value = String(step);
    map.show({ run, step, at, stages, layers });
    const open = pane.querySelector("details")?.open ?? false;
    if (!at) return pane.replaceChildren(el("p", { class: "empty", text: "Press a cell of the map for its statistics and its course over layers and steps." }));
    const about = stages.find((s) => s.name === at.stage);
    pane.replaceChildren(...details({ run, at, step, about, open, onLayer: (layer) => go({ at: { stage: at.stage, layer } }), onStep: (s) => go({ step: s }) }));
  };
  pick.addEventListener("change", () => go({ step: Number(pick.value) }));
  const box = document.getElementById("run-map");
  box.replaceChildren(el("div", { class: "besides" }, el("div", { class: "beside" }, root, pane)));
  go({});

  const worst = firstOdd(run, stages, layers);
  if (worst) {
    const link = el("a", { href: `#at-${worst.step}-${keyOf(worst.at)}`, text: `${nameOf(worst.at)}, ${words(worst.step)}` });
    document.querySelector("body > header").append(el("p", { class: "bad", id: "first" }, el("b", { text: "First NaN or Inf: " }), link));
  }
  const follow = () => {
    const found = /^#at-(\d+)-([\w.]+)$/.exec(location.hash);
    if (!found || !run.steps.has(Number(found[1]))) return;
    go({ step: Number(found[1]), at: placeOf(found[2]) });
    box.scrollIntoView({ block: "start" });
    map.focus(at);
  };
  addEventListener("hashchange", follow);
  follow();
}

drawRun(JSON.parse(document.getElementById("run-data").textContent));
