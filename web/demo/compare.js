// The comparison with a dump: of Hugging Face, of the command line, of another browser. The first value that is further
// off than rounding explains is named; the map shows how far off each is.
import { $, el, exact, save, short, table, times, told } from "./dom.js";
import { HeatMap } from "./heatmap.js";
import { nameOf } from "./run.js";
import { on, state } from "./state.js";

let controller = null;

export function setUp() {
  const pane = $("pane-compare");
  const result = el("div", { id: "compare-result" });
  const progress = el("p", { class: "numbers", role: "status", id: "compare-told" });
  const stop = el("button", { type: "button", text: "Stop", hidden: true, onclick: () => controller?.abort() });
  const box = (id, text) => [el("input", { type: "checkbox", id }), el("label", { for: id, text })];
  const input = el("input", { type: "file", id: "compare-file", accept: ".safetensors", onchange: () => input.files[0] && run(input.files[0]) });
  const run = (file) => compare(file, { progress, result, stop }).finally(() => (input.value = ""));
  const drop = el(
    "div",
    { class: "drop" },
    el("p", { text: "Drop a dump here, or choose one: its tokens run through this model, and every value is compared." }),
    el("label", { class: "file" }, "Choose a dump ", input),
    el("p", {}, ...box("isolated", "Each op on the dump's own inputs: only what is wrong itself stands out")),
    el("p", {}, ...box("prompt-only", "The prompt only")),
  );
  drop.addEventListener("dragover", (event) => event.preventDefault());
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    event.stopPropagation();
    if (event.dataTransfer.files[0]) run(event.dataTransfer.files[0]);
  });
  const how = el("details", {}, el("summary", { text: "Where dumps come from" }), el("p", { class: "soft" },
    "“Save a dump” below, in another browser or with other options; ", el("code", { text: "doppler debug -m MODEL --dump FILE" }),
    "; or Hugging Face by the scripts in ", el("code", { text: "src/debug/reference" }), "."));
  pane.append(drop, how, el("div", { class: "bar" }, progress, stop), result);
  on("model", () => (result.replaceChildren(), (progress.textContent = "")));
}

async function compare(file, { progress, result, stop }) {
  if (!state.model) return void (progress.textContent = "Load a model first.");
  controller?.abort();
  controller = new AbortController();
  stop.hidden = false;
  result.replaceChildren();
  progress.textContent = `Comparing with ${file.name}…`;
  try {
    const found = await state.model.compare(file, {
      isolated: $("isolated").checked,
      promptOnly: $("prompt-only").checked,
      onProgress: (p) => (progress.textContent = `Comparing with ${file.name}: ${sayProgress(p)}`),
      signal: controller.signal,
    });
    progress.textContent = "";
    draw(result, found, file.name);
  } catch (error) {
    progress.textContent = told(error);
  } finally {
    stop.hidden = true;
  }
}

function sayProgress(p) {
  const [done, total] = [p.done ?? p.loaded ?? 0, p.total ?? 0];
  return `${p.what ?? p.stage ?? ""} ${total ? `${done} of ${total}` : done}`.trim();
}

/** Where a line is: `at token 3, dim 7, head 1`. */
function place({ token, head, dim }) {
  const parts = [["token", token], ["head", head], ["dim", dim]].filter(([, at]) => at !== null && at !== undefined);
  return parts.length ? ` at ${parts.map(([name, at]) => `${name} ${at}`).join(", ")}` : "";
}

/** The verdict in a sentence. */
export function verdict({ report }) {
  const first = report.first_divergence;
  if (first) {
    const part = first.part ? ` (${first.part})` : "";
    return `The first value that differs is ${nameOf(first)}${part}${place(first)}: ${times(first.times_floor)} times the rounding floor, where ${report.allowed} are allowed.`;
  }
  if (report.missing.length) return `What both have agrees, but one side lacks ${report.missing.map((m) => m.stage).join(", ")}.`;
  if (report.not_judged.length) return `What was compared agrees, but this was not judged: ${report.not_judged.join("; ")}.`;
  return `They agree: all ${report.stages.length} values are within ${report.allowed} rounding floors.`;
}

function draw(box, found, name) {
  const { report } = found;
  const map = el("div", { class: "wide" });
  const once = el("div", { class: "wide" });
  const line = el("div");
  // Of a value the worst of its parts: watched, and as a run computes it that nobody watches.
  const byName = new Map();
  for (const s of report.stages) {
    const known = byName.get(nameOf(s));
    if (!known || Number(s.times_floor) > Number(known.times_floor) || (s.diverged && !known.diverged)) byName.set(nameOf(s), s);
  }
  const level = (times) => {
    const x = Number(times);
    // Up to what is allowed no colour; from there to a million times as much on a logarithmic scale.
    if (Number.isNaN(x)) return 1;
    return x <= report.allowed ? 0 : Math.min(1, 0.25 + (0.75 * Math.log10(x / report.allowed)) / 6);
  };
  const cell = (row, column) => {
    const s = byName.get(nameOf({ stage: column.id, layer: row.layer }));
    if (!s) return null;
    const first = report.first_divergence;
    const mark = first !== null && first.stage === s.stage && first.layer === s.layer;
    const label = `${nameOf(s)}: ${times(s.times_floor)} floors${place(s)}${s.diverged ? ", differs" : ""}${mark ? ", the first" : ""}`;
    return { level: level(s.times_floor), text: "", label, mark, odd: s.diverged && !Number.isFinite(Number(s.times_floor)) };
  };
  const open = (row, column) => line.replaceChildren(stageLine(byName.get(nameOf({ stage: column.id, layer: row.layer }))));
  const layered = report.stages.filter((s) => s.layer !== null);
  const names = (list) => [...new Set(list.map((s) => s.stage))];
  // In the order of computation, which the dump's stages and the table's are in.
  const order = (list) => state.model.info.stages.filter((s) => list.includes(s));
  const layers = [...new Set(layered.map((s) => s.layer))].sort((a, b) => a - b);
  const columns = (list) => order(names(list)).map((id) => ({ id, label: id }));
  if (layers.length) {
    const rows = layers.map((layer) => ({ id: layer, label: `L${layer}`, layer }));
    const grid = new HeatMap(map, { label: "Distance in rounding floors, layers by stages", onOpen: open });
    grid.show({ rows, columns: columns(layered), cell });
  }
  const outside = report.stages.filter((s) => s.layer === null);
  if (outside.length) {
    const rows = [{ id: "model", label: "model", layer: null }];
    const grid = new HeatMap(once, { label: "Distance in rounding floors, stages outside layers", onOpen: open });
    grid.show({ rows, columns: columns(outside), cell });
  }
  const stem = name.replace(/\.safetensors$/, "");
  box.replaceChildren(
    el("p", { class: found.differs ? "verdict bad" : "verdict good", id: "verdict", role: "status", text: verdict(found) }),
    el("p", { class: "soft", text: `A: ${report.a}. B: ${report.b}. ${report.mode === "isolated" ? "Each op on A's inputs" : "Free runs: an error shows in all behind it"}, ${report.tokens} tokens. Floor: ${report.floor}.` }),
    map, once,
    el("p", { class: "soft", text: `No colour: within ${report.allowed} floors. Orange: beyond, full at a million times that. ▲ is the first. Press a cell for its numbers.` }),
    line,
    ...report.notes.map((note) => el("p", { class: "soft", text: note })),
    differing(report),
    el("div", { class: "bar" },
      el("button", { type: "button", text: "Save as HTML", onclick: () => save(`${stem}-compare.html`, [found.html], "text/html") }),
      el("button", { type: "button", text: "Save as text", onclick: () => save(`${stem}-compare.txt`, [found.text], "text/plain") }),
      el("button", { type: "button", text: "Save as JSON", onclick: () => save(`${stem}-compare.json`, [JSON.stringify(report, null, 2)], "application/json") })),
  );
}

/** All numbers of one line. */
function stageLine(s) {
  const list = [
    ["distance", `${times(s.times_floor)} floors${place(s)}`], ["relative L2", short(s.relative_l2)], ["floor", short(s.floor) + (s.estimated_floor ? " (estimated)" : "")],
    ["largest difference", short(s.max_abs)], ["cosine", exact(s.cosine)], ["A and B there", s.a === null ? "–" : `${exact(s.a)} and ${exact(s.b)}`],
  ];
  return el("div", {}, el("h3", { text: nameOf(s) }), el("dl", { class: "numbers stats" }, ...list.map(([name, text]) => el("div", {}, el("dt", { text: name }), el("dd", { text })))));
}

function differing(report) {
  const beyond = report.stages.filter((s) => s.diverged);
  if (!beyond.length) return "";
  const row = (s) => [`${nameOf(s)}${s.part ? ` [${s.part}]` : ""}`, times(s.times_floor), short(s.relative_l2), s.a === null ? "" : exact(s.a), s.b === null ? "" : exact(s.b)];
  const head = ["value", "floors", "relative L2", "A", "B"];
  const rows = table("In the order of computation", head, beyond.slice(0, 200).map(row), { numbers: [1, 2, 3, 4] });
  return el("details", {}, el("summary", { text: `Values that differ (${beyond.length} of ${report.stages.length})` }), rows);
}
