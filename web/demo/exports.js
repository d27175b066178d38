// What can be taken away from a run: the HTML report, a dump, the same run as a command line.
import { held } from "./attention.js";
import { $, bytes, many, save, told } from "./dom.js";
import { repeat } from "./runner.js";
import { on, state } from "./state.js";

export function setUp() {
  const update = () => {
    for (const id of ["save-report", "save-dump", "copy-command"]) $(id).disabled = state.busy || !state.run?.promptIds.length;
  };
  on("run busy model", update);
  on("run", () => (($("command").hidden = true), say("")));
  $("save-report").addEventListener("click", () => work("The report", report));
  $("save-dump").addEventListener("click", () => work("The dump", dump));
  $("copy-command").addEventListener("click", copy);
}

const say = (text) => ($("export-text").textContent = text);
const stem = () => `doppler-${state.model.info.model.replaceAll(/[^\w.-]+/g, "-")}`;

async function work(what, make) {
  for (const id of ["save-report", "save-dump"]) $(id).disabled = true;
  say(`${what}: the run is repeated…`);
  try {
    say(`${what} has ${bytes(await make(state.run))}.`);
  } catch (error) {
    say(told(error));
  } finally {
    for (const id of ["save-report", "save-dump"]) $(id).disabled = state.busy;
  }
}

async function report(run) {
  const probes = state.probes.length ? { probes: state.probes } : {};
  const given = await repeat(run, { trace: "embed,attn,kv,ffn,layer,logits,sample,lens", anomalies: true, hash: true, report: true, ...probes });
  const html = completed(given.report, run);
  save(`${stem()}.html`, [html], "text/html");
  return new Blob([html]).size;
}

/** A report with facts that the engine does not know: the command `words`, the time, others by name. */
export function withFacts(html, words, others) {
  const text = (fact) => fact.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
  const facts = [["Command", words.map(quoted).join(" ")], ["Date", `${new Date().toISOString().slice(0, 16).replace("T", " ")} UTC`], ...Object.entries(others)];
  const terms = facts.map(([name, fact]) => `<div><dt>${name}</dt><dd>${text(fact)}</dd></div>`).join("");
  // Texts of a report have no `<`, so this place is the engine's.
  return html.replace('<dl class="facts">', (start) => start + terms);
}

/** A report with what the engine does not know: facts, and the attention that was looked at. */
function completed(html, run) {
  const prompt = run.prompt?.text ?? `ids ${run.promptIds.join(", ")}`;
  const whole = withFacts(html, wordsOf(run, state.origin, state.probes), { Model: state.origin.name, Prompt: prompt });
  const attention = held(run);
  if (!attention) return whole;
  const data = JSON.stringify(attention).replaceAll("<", "\\u003c");
  const drawing = `<div id="attention"></div><script type="application/json" id="attention-data">${data}</script>`;
  return whole.replace(/(<h2 id="attention-title">[^<]*<\/h2>\n)<p.*?<\/p>/s, (_, title) => title + drawing);
}

async function dump(run) {
  // Values that are no numbers end a generation, and are what a dump is for.
  const bytesOf = await repeat(run, { dump: "all" }).then((done) => done.dump, (error) => error.dump ?? Promise.reject(error));
  save(`${stem()}.safetensors`, [bytesOf], "application/octet-stream");
  return bytesOf.length;
}

/** A word as a POSIX shell takes it. */
const quoted = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);

/** The run for the terminal. */
export const command = (run, origin, probes = []) => wordsOf(run, origin, probes).map(quoted).join(" ");

/** Likewise, word by word. */
function wordsOf(run, origin, probes) {
  const words = ["doppler", "debug", "-m", origin.name];
  if (run.prompt?.chat) words.push("--chat");
  if (run.prompt) words.push("-p", run.prompt.text);
  else words.push("--token-ids", run.promptIds.join(","));
  const flags = { maxTokens: "--max-tokens", temperature: "--temperature", topK: "--top-k", topP: "--top-p", minP: "--min-p", repeatPenalty: "--repeat-penalty", seed: "--seed" };
  for (const [name, flag] of Object.entries(flags)) {
    const value = name === "maxTokens" ? run.options.maxTokens : run.options[name];
    if (value !== undefined && !(name === "temperature" && value === 0)) words.push(flag, String(value));
  }
  words.push("--trace", "all,-kernels,-loader");
  if (probes.length) words.push("--config", JSON.stringify({ runtime: { debug: { probes } } }));
  return words;
}

async function copy() {
  const text = command(state.run, state.origin, state.probes);
  $("command").textContent = text;
  $("command").hidden = false;
  const raw = state.run.prompt ? "" : ` Ids stand for the ${many(state.run.promptEnd, "token")} of the conversation.`;
  try {
    await navigator.clipboard.writeText(text);
    say(`Copied.${raw}`);
  } catch {
    say(`Here it is.${raw}`);
  }
}
