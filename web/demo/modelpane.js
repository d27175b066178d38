// What the model is: every number that changes the maths with its source, the device, memory, weights that are no
// numbers.
import { $, bytes, duration, el, table } from "./dom.js";
import { on, state } from "./state.js";

export function setUp() {
  on("model", draw);
  draw();
}

function draw() {
  const pane = $("pane-model");
  const info = state.model?.info;
  if (!info) return pane.replaceChildren(el("p", { class: "empty", text: "No model is loaded." }));
  const { device } = info;
  const { network, cache, file, milliseconds } = info.loading;
  const from = [[network, "from the network"], [cache, "from the cache"], [file, "from files"]].filter(([count]) => count > 0);
  const features = [device.f16 && "f16", device.subgroup && `subgroups of ${device.subgroup}`, device.timestamps && "timestamps", device.software && "software"];
  const about = [
    ["model", `${info.model}, preset ${info.preset}`],
    ["shape", `${info.layers} layers, hidden ${info.hidden}, vocabulary ${info.vocab}`],
    ["weights", `${info.weights}, ${bytes(info.weightBytes)}`],
    ["activations", info.dtype],
    ["context", `${info.context} tokens`],
    ["device", device.description],
    ["features", features.filter(Boolean).join(", ") || "none beyond the floor"],
    ["limits", `bindings of ${bytes(device.maxBinding)}, buffers of ${bytes(device.maxBuffer)}`],
    ["loaded", `in ${duration(milliseconds)}: ${from.map(([count, where]) => `${bytes(count)} ${where}`).join(", ")}`],
    ["kept in this browser", info.cached ? "yes" : "no"],
  ];
  const memory = info.memory.rows.map((row) => [row.what, row.detail, bytes(row.bytes)]);
  const parts = [
    el("dl", { class: "stats" }, ...about.map(([name, text]) => el("div", {}, el("dt", { text: name }), el("dd", { text })))),
    ...info.notes.map((note) => el("p", { class: "soft", text: note })),
    table(`Memory for ${info.memory.capacity} positions: ${bytes(info.memory.total)}`, ["what", "", "size"], memory, { numbers: [2] }),
  ];
  if (info.nonFinite.length) {
    const rows = info.nonFinite.map((t) => [t.tensor, t.shape.join("×"), String(t.nan), String(t.inf), String(t.first)]);
    parts.push(table("Weights that are no numbers", ["tensor", "shape", "NaN", "Inf", "first"], rows, { numbers: [2, 3, 4] }));
  }
  if (info.ignoredKeys.length) parts.push(el("p", { class: "soft", text: `Keys of config.json that change nothing: ${info.ignoredKeys.join(", ")}.` }));
  parts.push(table("Config: every number that changes the maths", ["field", "value", "source"], info.config.map((c) => [c.name, c.value, c.source])));
  pane.replaceChildren(...parts);
}
