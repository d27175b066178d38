// The lines that `doppler debug` prints, of the run that is looked at: filtered, copied, saved. Dispatches and times of
// kernels are lines too, for which the run is repeated.
import { $, el, many, save, told } from "./dom.js";
import { repeat } from "./runner.js";
import { on, state } from "./state.js";

/** Lines that are shown; a filter finds among all. */
const SHOWN = 400;

/** Lines of repeated runs, by what was asked for; of the run `of`. */
let more = { of: null, lines: {} };
let problem = "";
let repeating = false;

export function setUp() {
  const what = el("select", { id: "lines-what" },
    el("option", { value: "run", text: "this run" }), el("option", { value: "kernels", text: "dispatches of a step" }), el("option", { value: "perf", text: "GPU times by kernel" }));
  const filter = el("input", { id: "lines-filter", type: "search", placeholder: "L3 ffn_out", autocomplete: "off", spellcheck: "false" });
  const count = el("p", { class: "numbers soft", role: "status" });
  const text = el("pre", { class: "line", id: "lines", tabindex: "0", "aria-label": "Lines" });
  const keep = el("button", { type: "button", text: "Save lines" });
  const draw = () => {
    if ($("pane-lines").hidden) return;
    const all = wanted(what.value, draw);
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = all.filter((line) => words.every((word) => line.toLowerCase().includes(word)));
    text.textContent = found.slice(-SHOWN).join("\n");
    text.hidden = !found.length;
    count.textContent = repeating ? "The run is repeated…" : problem || `${many(found.length, "line")}${found.length > SHOWN ? `, the last ${SHOWN} of which are shown` : ""}`;
    keep.disabled = !found.length;
    keep.onclick = () => save("doppler-lines.txt", [found.join("\n"), "\n"], "text/plain");
  };
  $("pane-lines").append(el("div", { class: "bar" }, el("label", {}, "Lines of ", what), el("label", {}, "with the words ", filter), keep), count, text);
  what.addEventListener("change", draw);
  filter.addEventListener("input", draw);
  $("tabs").addEventListener("click", draw);
  $("tabs").addEventListener("keyup", draw);
  on("data run busy", draw);
}

/** The lines there are; those of a repeated run come later, and `draw` is called. */
function wanted(what, draw) {
  const { run, busy } = state;
  if (!run) return [];
  if (what === "run") return run.lines;
  if (more.of !== run) more = { of: run, lines: {} };
  if (more.lines[what] || busy || repeating) return more.lines[what] ?? [];
  const lines = (more.lines[what] = []);
  [problem, repeating] = ["", true];
  const onRecord = (record) => record.type === "told" && lines.push(record.line);
  repeat(run, { trace: what, onRecord })
    .then((done) => lines.push(...done.notes.map((note) => `Note ${note}`)))
    .catch((error) => (problem = told(error)))
    .finally(() => ((repeating = false), draw()));
  return lines;
}
