// The inspector's map: layers by stages, coloured for the step shown; the tokens that choose the step; findings; what
// is watched.
import { $, el, many, percent, told, visible } from "./dom.js";
import { RunMap } from "./picture/map.js";
import { nameOf } from "./picture/names.js";
import { again, watchWith } from "./runner.js";
import { on, selectCell, selectToken, state } from "./state.js";

/** Every category of values. */
const EVERYTHING = "embed,attn,kv,ffn,layer,logits";

export function setUp() {
  const map = new RunMap($("map"), { onOpen: selectCell });
  const draw = () => drawMap(map);
  on("data select run", draw);
  on("data select run", drawTokens);
  on("data run select", drawFindings);
  on("data run busy model", sayWatched);
  $("watch").addEventListener("change", sayWatched);
  $("fold").addEventListener("click", fold);
  watchWith(() => ($("inspector").hidden ? null : categories()));
  $("again").addEventListener("click", () => again().catch((error) => ($("watched").textContent = told(error))));
  on("busy run model", () => ($("again").disabled = state.busy || !state.run));
  $("tokens").addEventListener("keydown", moveAlong);
  draw();
  sayWatched();
}

const categories = () => ($("watch").value === "all" ? EVERYTHING : $("watch").value);

/** Shows the inspector or folds it away, with all that it costs. */
function fold() {
  const hidden = !$("inspector").hidden;
  $("inspector").hidden = hidden;
  $("fold").setAttribute("aria-expanded", String(!hidden));
  document.body.classList.toggle("folded", hidden);
}

/** What is being watched, or what it took. */
function sayWatched() {
  const { run, model, busy } = state;
  if (!model) return void ($("watched").textContent = "");
  const stages = model.info.stageInfo.filter((s) => categories().split(",").includes(s.category));
  const count = stages.reduce((sum, s) => sum + (s.layers?.length ?? 1), 0);
  const plan = `Statistics of ${many(count, "value")} are reduced on the GPU in each step. Fold the inspector away to watch nothing.`;
  const notes = run?.done?.notes ?? [];
  const changed = notes.length ? ` Note: ${notes.join("; ")}.` : "";
  $("watched").textContent = run?.error && !busy ? told(run.error) : plan + changed;
}

function drawMap(map) {
  const { run, model, step, at } = state;
  const there = Boolean(run?.steps.get(step));
  $("heat-empty").hidden = there;
  $("picture").hidden = !there;
  if (there) map.show({ run, step, at, stages: model.info.stageInfo, layers: model.info.layers });
}

function drawTokens() {
  const { run, step, position } = state;
  const strip = $("tokens");
  strip.hidden = !run;
  if (!run) return;
  const odd = new Map(run.findings.map((f) => [f.step, f.kind]));
  // The strip grows with the run: what is there stays, with the focus.
  if (strip.run !== run) {
    strip.replaceChildren();
    strip.run = run;
  }
  run.tokens.forEach((token, i) => {
    const made = i - run.promptEnd;
    const selected = made < 0 ? step === 0 && i === position : made === step;
    let option = strip.children[i];
    if (!option) {
      option = el("span", { role: "option", class: token.generated ? "token made" : "token", onclick: () => selectToken(i) });
      strip.append(option);
    }
    const finding = token.generated ? odd.get(made) : undefined;
    option.textContent = visible(token.text) || String(token.id);
    option.title = `token ${i}, id ${token.id}`;
    const what = token.generated ? `generated in step ${made}` : "of the prompt";
    option.setAttribute("aria-label", `${JSON.stringify(token.text ?? "")}, id ${token.id}, ${what}${finding ? `, anomaly ${finding}` : ""}`);
    option.setAttribute("aria-selected", String(selected));
    option.classList.toggle("marked", Boolean(finding));
    option.classList.toggle("read", step > 0 ? i === position : i < run.promptEnd);
    option.tabIndex = selected ? 0 : -1;
    if (selected && state.following) strip.scrollTop = option.offsetTop - strip.clientHeight / 2;
  });
  if (!strip.querySelector('[tabindex="0"]') && strip.firstChild) strip.firstChild.tabIndex = 0;
  const sample = run.samples.get(step);
  const read = step === 0 ? `reads ${many(run.promptEnd, "token")}` : `reads “${visible(run.tokens[position]?.text)}” (t${position})`;
  const chosen = sample?.chosen ? `, chooses “${visible(sample.chosen.text) || sample.chosen.id}” at ${percent(sample.chosen.probability)}` : "";
  $("step-text").textContent = `Step ${step} ${read}${chosen}`;
}

/** Arrow keys along the tokens. */
function moveAlong(event) {
  const options = [...$("tokens").children];
  const at = options.indexOf(document.activeElement);
  const next = { ArrowLeft: at - 1, ArrowUp: at - 1, ArrowRight: at + 1, ArrowDown: at + 1, Home: 0, End: options.length - 1 }[event.key];
  if (next === undefined || !options[next]) return;
  event.preventDefault();
  options[next].tabIndex = 0;
  options[next].focus();
  selectToken(next);
}

function drawFindings() {
  const { run } = state;
  const list = run?.findings ?? [];
  const box = $("findings");
  const key = list.map((f) => f.line).join("\n");
  if (box.dataset.key === key) return;
  box.dataset.key = key;
  if (!list.length) return box.replaceChildren();
  const item = (finding) => {
    const where = finding.stage ? `${nameOf(finding)}, step ${finding.step}` : `step ${finding.step}`;
    const go = () => {
      selectToken(finding.step > 0 ? run.promptEnd + finding.step : (finding.token ?? run.promptEnd));
      if (finding.stage) selectCell({ stage: finding.stage, layer: finding.layer });
    };
    return el("li", {}, el("button", { type: "button", class: "link", text: `${finding.kind} at ${where}`, onclick: go }), ` ${finding.message}`);
  };
  box.replaceChildren(el("h3", { class: "bad", text: `▲ ${list.length === 1 ? "1 anomaly" : `${list.length} anomalies`}` }), el("ul", {}, ...list.slice(0, 40).map(item)));
}
