// The pane of attention: `attn_probs` of the run that is looked at, a layer at a time, read on demand.
import { $, el, many } from "./dom.js";
import { value } from "./dumpfile.js";
import { AttentionMaps, packed } from "./picture/attention.js";
import { on, state } from "./state.js";

/** The stage that is shown. */
const STAGE = "attn_probs";
/** The most probabilities of a layer that are drawn, as reports have it. */
const MOST = 2 ** 26;

/** Layers that were read of the run `of`, whose first `count` tokens they are of. */
let read = { of: null, count: 0, layers: new Map() };

export function setUp() {
  on("run model", draw);
  on("busy", () => state.busy || draw());
  draw();
}

function draw() {
  const pane = $("pane-attention");
  const { run, model, busy } = state;
  if (!run || busy) return pane.replaceChildren(el("p", { class: "empty", text: "Which token looks at which, in each head, once a run is over." }));
  const layers = model.info.stageInfo.find((s) => s.name === STAGE)?.layers;
  if (!layers?.length) return pane.replaceChildren(el("p", { class: "empty", text: "No layer of this model has attention." }));
  if (read.of !== run) read = { of: run, count: run.idsAt(run.lastStep()).length, layers: new Map() };
  const go = el("button", {
    type: "button", id: "read-attention", text: "Read the attention",
    onclick: async () => {
      const box = el("div", { id: "attention" });
      pane.replaceChildren(box);
      const tokens = run.tokens.slice(0, read.count).map((token) => token.text || `#${token.id}`);
      await new AttentionMaps(box, (layer) => of(run, layer)).show(tokens, layers);
    },
  });
  pane.replaceChildren(go, el("p", { class: "soft", text: `Reads the ${many(read.count, "token")} once more for each layer that is looked at. A saved report has the layers that were.` }));
}

/** The attention of a layer, read once. */
async function of(run, layer) {
  const known = read.layers.get(layer);
  if (known) return known;
  const key = `layer.${layer}.${STAGE}`;
  const found = value(await state.model.dump(run.idsAt(run.lastStep()), { stages: [STAGE], layers: [layer], maxTokens: 0 }), key);
  if (!found) throw new Error(`the engine gave no ${key}`);
  const [heads, tokens] = found.shape;
  if (heads * tokens * tokens > MOST) throw new Error(`${heads} heads of ${tokens} tokens have more than ${MOST} probabilities: ask with a shorter text`);
  const shown = { heads, row: (head, token) => found.row(head * tokens + token) };
  if (read.of === run) read.layers.set(layer, shown);
  return shown;
}

/** The layers that were looked at, as a report holds them; null for none. */
export function held(run) {
  if (read.of !== run || !read.layers.size) return null;
  const layers = [...read.layers].sort(([a], [b]) => a - b).map(([layer, shown]) => packed(layer, shown, read.count));
  return { layers, tokens: run.tokens.slice(0, read.count).map((token) => token.text || `#${token.id}`) };
}
