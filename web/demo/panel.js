// The pane of one value: its statistics in the step shown, over layers and over steps, and its elements on demand.
import { $, el, exact, many, table, told, visible } from "./dom.js";
import { largest, value } from "./dumpfile.js";
import { rowChart } from "./picture/chart.js";
import { details } from "./picture/details.js";
import { addProbe } from "./probes.js";
import { keyOf, nameOf } from "./picture/names.js";
import { on, selectCell, selectToken, state } from "./state.js";

/** Elements of a row that are listed. */
const LISTED = 12;

export function setUp() {
  const head = el("div");
  const values = el("div", { id: "values" });
  $("pane-stage").append(head, values);
  on("data select run", () => drawHead(head));
  on("select run", () => drawValues(values));
  drawHead(head);
  drawValues(values);
}

function drawHead(head) {
  const { run, at, step, model } = state;
  if (!at || !run) {
    return head.replaceChildren(el("p", { class: "empty", text: "Press a cell of the map for its statistics, its course over layers and tokens, and its elements." }));
  }
  const about = model.info.stageInfo.find((s) => s.name === at.stage);
  const open = head.querySelector("details")?.open ?? false;
  const onLayer = (layer) => selectCell({ stage: at.stage, layer });
  head.replaceChildren(...details({ run, at, step, about, open, onLayer, onStep: (s) => selectToken(run.promptEnd + s) }));
}

/** What was read last: for which value, and up to which token. */
let read = null;

function drawValues(box) {
  const { run, at, step } = state;
  if (!run || !at) return box.replaceChildren();
  if (read && read.run === run && read.step === step && read.key === keyOf(at)) return drawRow(box);
  const go = async (event) => {
    const button = event.target;
    button.disabled = true;
    button.textContent = "Reading…";
    try {
      const options = { stages: [at.stage], maxTokens: 0 };
      if (at.layer !== null) options.layers = [at.layer];
      const bytes = await state.model.dump(run.idsAt(step), options);
      const found = value(bytes, keyOf(at));
      if (!found) throw new Error(`the engine gave no ${keyOf(at)}`);
      read = { run, step, key: keyOf(at), at, found, head: 0, position: null };
      drawValues(box);
    } catch (error) {
      box.replaceChildren(el("p", { class: "bad", text: told(error) }));
    }
  };
  box.replaceChildren(
    el("button", { type: "button", id: "read-values", text: "Read its elements", onclick: go }),
    el("p", { class: "soft", text: `Reads the ${many(run.idsAt(step).length, "token")} up to this step once more, in one pass.` }),
  );
}

/** One row of what was read. */
function drawRow(box) {
  const { run, at } = state;
  const { found, step } = read;
  const scores = found.shape.length === 3;
  const tokens = scores ? found.shape[1] : found.shape[0];
  // Of logits only the row is computed that a token is chosen from.
  const first = run.idsAt(step).length - tokens;
  const position = Math.max(first, Math.min(read.position ?? state.position, first + tokens - 1));
  const row = found.row((scores ? read.head * tokens : 0) + position - first);
  const pickToken = el("select", { id: "row", onchange: (event) => ((read.position = Number(event.target.value)), drawRow(box)) });
  for (let p = first; p < first + tokens; p++) {
    pickToken.append(el("option", { value: p, selected: p === position, text: `t${p} ${visible(run.tokens[p]?.text)}` }));
  }
  const controls = [el("label", {}, "Row of token ", pickToken)];
  if (scores) {
    const pickHead = el("select", { onchange: (event) => ((read.head = Number(event.target.value)), drawRow(box)) });
    for (let h = 0; h < found.shape[0]; h++) pickHead.append(el("option", { value: h, selected: h === read.head, text: `h${h}` }));
    controls.push(el("label", {}, "Head ", pickHead));
  }
  const probe = (dim) => el("button", { type: "button", class: "link", text: "probe", "aria-label": `Probe dim ${dim}`, onclick: () => addProbe({ ...at, dims: [dim] }) });
  const rows = largest(row, LISTED).map(({ dim, value: x }) => [scores ? `p${dim} ${visible(run.tokens[dim]?.text)}` : String(dim), exact(x), scores ? "" : probe(dim)]);
  box.replaceChildren(
    el("div", { class: "bar" }, ...controls),
    rowChart(row, `row of token ${position}`),
    table(`Largest elements of ${nameOf(at)} at token ${position}`, [scores ? "position" : "dim", "value", ""], rows, { numbers: [0, 1] }),
  );
}
