// The logit lens: what each layer would say if it were the last one, for the step shown or for a whole run.
import { $, el, percent, short, told, visible } from "./dom.js";
import { repeat } from "./runner.js";
import { on, selectToken, state } from "./state.js";

export function setUp() {
  const pane = $("pane-lens");
  on("select run busy data", () => draw(pane));
  draw(pane);
}

/** What one token's lens gave: `{ run, step, records }`. */
let single = null;
let problem = null;
let looking = false;

function draw(pane) {
  const { run, step, busy } = state;
  if (!run) return pane.replaceChildren(el("p", { class: "empty", text: "What each layer would say if it were the last one." }));
  const look = (text, id, work) =>
    el("button", {
      type: "button", id, text: looking ? "Looking…" : text, disabled: busy || looking,
      onclick: async () => {
        [looking, problem] = [true, null];
        draw(pane);
        await work().catch((error) => (problem = told(error)));
        looking = false;
        draw(pane);
      },
    });
  const one = async () => {
    const records = [];
    // The tokens as they stand, whatever sampling chose.
    await state.model.generate(run.idsAt(step), { maxTokens: 1, trace: "lens", onRecord: (r) => r.type === "lens" && records.push(r) }).done;
    single = { run, step, records };
  };
  const whole = async () => {
    const records = [];
    await repeat(run, { trace: "lens", onRecord: (r) => r.type === "lens" && records.push(r) });
    run.lens.clear();
    records.forEach((record) => run.take(record));
  };
  const parts = [el("div", { class: "bar" }, look("Look at this step", "lens-one", one), look("Look at the whole run", "lens-all", whole))];
  if (problem) parts.push(el("p", { class: "bad", role: "alert", text: problem }));
  if (single?.run === run && single.step === step) parts.push(ofStep(single.records));
  if (run.lens.size) parts.push(ofRun(run));
  if (parts.length === 1) parts.push(el("p", { class: "soft", text: "Puts the final norm and the head behind every layer. The first look runs the tokens once more." }));
  pane.replaceChildren(...parts);
}

/** Shades a cell by a probability. */
function shaded(td, probability) {
  td.style.setProperty("--level", `${(Math.min(1, Math.max(0, probability)) * 100).toFixed(1)}%`);
  td.classList.add("cell");
  return td;
}

/** Layers by candidates. */
function ofStep(records) {
  const most = Math.max(0, ...records.map((r) => r.top.length));
  const row = ({ layer, top, entropy, chosen }) => {
    const cells = top.map((c) => {
      const piece = el("b", { class: "piece", text: visible(c.text) || c.id });
      return shaded(el("td", { title: `id ${c.id}, logit ${short(c.logit)}` }, piece, ` ${percent(c.probability)}`), c.probability);
    });
    const numbers = [short(entropy), chosen ? percent(chosen.probability) : ""].map((text) => el("td", { class: "number", text }));
    return el("tr", {}, el("th", { scope: "row", text: `L${layer}` }), ...cells, ...numbers);
  };
  const head = ["layer", ...Array.from({ length: most }, (_, i) => `${i + 1}.`), "entropy", "chosen"];
  return grid("What each layer would say; the last layer is what the model says", head, records.map(row));
}

/** Layers, the last on top, by steps: the best token of each. */
function ofRun(run) {
  const steps = [...run.lens.keys()].sort((a, b) => a - b);
  const layers = run.lens.get(steps[0]).map((r) => r.layer).reverse();
  const cell = (layer, step) => {
    const record = run.lens.get(step).find((r) => r.layer === layer);
    const best = record?.top[0];
    if (!best) return el("td");
    const right = record.chosen?.id === best.id;
    const title = `step ${step}, id ${best.id}, ${percent(best.probability)}`;
    const piece = el("span", { class: "piece", text: visible(best.text) || String(best.id) });
    return shaded(el("td", { title, class: right ? "chosen" : null }, piece), best.probability);
  };
  const row = (layer) => el("tr", {}, el("th", { scope: "row", text: `L${layer}` }), ...steps.map((step) => cell(layer, step)));
  const token = (step) => visible(run.tokens[run.positionOf(step)]?.text);
  const head = ["read", ...steps.map(token)];
  const caption = "The likeliest token of each layer (rows) after each token (columns); framed where it is the one that was chosen";
  return grid(caption, head, layers.map(row), (i) => selectToken(run.promptEnd + steps[i - 1]));
}

function grid(caption, head, rows, onhead) {
  const button = (text, i) =>
    el("button", { type: "button", class: "link piece", text: text || "–", "aria-label": `Show the step that read ${text}`, onclick: () => onhead(i) });
  const cell = (text, i) => el("th", { scope: "col" }, onhead && i > 0 ? button(text, i) : text);
  return el(
    "div",
    { class: "wide", role: "region", "aria-label": caption, tabindex: "0" },
    el("table", { class: "lens" }, el("caption", { text: caption }), el("thead", {}, el("tr", {}, ...head.map(cell))), el("tbody", {}, ...rows)),
  );
}
