// What the model could have said: the highest logits of the step shown with their probabilities, and of all steps.
import * as chart from "./picture/chart.js";
import { $, el, percent, short, table, visible } from "./dom.js";
import { on, selectToken, state } from "./state.js";

export function setUp() {
  const pane = $("pane-logits");
  on("data select run", () => draw(pane));
  draw(pane);
}

function draw(pane) {
  const { run, step } = state;
  if (!run?.samples.size) {
    return pane.replaceChildren(el("p", { class: "empty", text: "For each generated token: its alternatives and how sure the model was." }));
  }
  const sample = run.samples.get(step);
  const parts = sample ? [candidates(sample)] : [el("p", { text: `Step ${step} chose no token.` })];
  const open = pane.querySelector("details")?.open ?? false;
  parts.push(el("details", { open }, el("summary", { text: `Every step (${run.samples.size})` }), everyStep(run)));
  pane.replaceChildren(...parts);
}

/** A candidate's text, its id beside it. */
const name = (c) => `${visible(c.text) || "–"} `;

function candidates(sample) {
  const { chosen, top, entropy, step } = sample;
  const isChosen = (c) => chosen && c.id === chosen.id;
  const list = chosen && !top.some(isChosen) ? [...top, chosen] : top;
  const row = (c) => [
    el("span", { class: isChosen(c) ? "chosen" : null }, el("b", { class: "piece", text: name(c) }), isChosen(c) ? "chosen" : ""),
    String(c.id), short(c.logit), percent(c.probability), chart.barChart(c.probability),
  ];
  const nonFinite = sample.nonFinite ? `, ${sample.nonFinite} logits are no numbers` : "";
  return el(
    "div",
    {},
    el("p", { class: "numbers", text: `Entropy ${short(entropy)} nats, as of ${short(Math.exp(entropy))} equally likely tokens${nonFinite}.` }),
    table(`Step ${step}: the highest logits, after the soft-cap; probabilities at temperature 1`, ["token", "id", "logit", "probability", ""], list.map(row), { numbers: [1, 2, 3] }),
  );
}

function everyStep(run) {
  const row = ({ step, chosen, top, entropy }) => {
    const second = top.find((c) => c.id !== chosen?.id);
    const go = () => selectToken(run.promptEnd + step);
    return [
      el("button", { type: "button", class: "link", text: String(step), "aria-label": `Show step ${step}`, onclick: go }),
      chosen ? el("b", { class: "piece", text: name(chosen) }) : "–",
      chosen ? percent(chosen.probability) : "",
      second ? `${visible(second.text)} ${percent(second.probability)}` : "",
      short(entropy),
    ];
  };
  return table("Chosen tokens and the best alternatives", ["step", "chosen", "probability", "otherwise", "entropy"], [...run.samples.values()].map(row), { numbers: [2, 4] });
}
