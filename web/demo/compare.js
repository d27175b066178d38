// The comparison with a dump: of Hugging Face, of the command line, of another browser. The first value that is further
// off than rounding explains is named; the map shows how far off each is.
import { $, el, exact, save, short, table, times, told } from "./dom.js";
import { withFacts } from "./exports.js";
import { compareMap, spotOf } from "./picture/comparemap.js";
import { nameOf } from "./picture/names.js";
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
    const asked = { isolated: $("isolated").checked, promptOnly: $("prompt-only").checked };
    const found = await state.model.compare(file, {
      ...asked,
      onProgress: (p) => (progress.textContent = `Comparing with ${file.name}: ${sayProgress(p)}`),
      signal: controller.signal,
    });
    progress.textContent = "";
    draw(result, found, file.name, asked);
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

/** The verdict in a sentence. */
export function verdict({ report }) {
  const first = report.first_divergence;
  if (first) {
    const part = first.part ? ` (${first.part})` : "";
    return `The first value that differs is ${nameOf(first)}${part}${spotOf(first)}: ${times(first.times_floor)} times the rounding floor, where ${report.allowed} are allowed.`;
  }
  if (report.missing.length) return `What both have agrees, but one side lacks ${report.missing.map((m) => m.stage).join(", ")}.`;
  if (report.not_judged.length) return `What was compared agrees, but this was not judged: ${report.not_judged.join("; ")}.`;
  return `They agree: all ${report.stages.length} values are within ${report.allowed} rounding floors.`;
}

function draw(box, found, name, asked) {
  const { report } = found;
  const map = el("div");
  compareMap(map, report, state.model.info.stages);
  const stem = name.replace(/\.safetensors$/, "");
  box.replaceChildren(
    el("p", { class: found.differs ? "verdict bad" : "verdict good", id: "verdict", role: "status", text: verdict(found) }),
    el("p", { class: "soft", text: `A: ${report.a}. B: ${report.b}. ${report.mode === "isolated" ? "Each op on A's inputs" : "Free runs: an error shows in all behind it"}, ${report.tokens} tokens. Floor: ${report.floor}.` }),
    map,
    ...report.notes.map((note) => el("p", { class: "soft", text: note })),
    differing(report),
    el("div", { class: "bar" },
      el("button", { type: "button", text: "Save as HTML", onclick: () => save(`${stem}-compare.html`, [completed(found.html, name, asked)], "text/html") }),
      el("button", { type: "button", text: "Save as text", onclick: () => save(`${stem}-compare.txt`, [found.text], "text/plain") }),
      el("button", { type: "button", text: "Save as JSON", onclick: () => save(`${stem}-compare.json`, [JSON.stringify(report, null, 2)], "application/json") })),
  );
}

/** The report with its facts. */
function completed(html, name, { isolated, promptOnly }) {
  const words = ["doppler", "compare", name, "-m", state.origin.name, ...(isolated ? ["--isolated"] : []), ...(promptOnly ? ["--prompt-only"] : [])];
  return withFacts(html, words, { Model: state.origin.name });
}

function differing(report) {
  const beyond = report.stages.filter((s) => s.diverged);
  if (!beyond.length) return "";
  const row = (s) => [`${nameOf(s)}${s.part ? ` [${s.part}]` : ""}`, times(s.times_floor), short(s.relative_l2), s.a === null ? "" : exact(s.a), s.b === null ? "" : exact(s.b)];
  const head = ["value", "floors", "relative L2", "A", "B"];
  const rows = table("In the order of computation", head, beyond.slice(0, 200).map(row), { numbers: [1, 2, 3, 4] });
  return el("details", {}, el("summary", { text: `Values that differ (${beyond.length} of ${report.stages.length})` }), rows);
}
