// What can be taken away from a run: the HTML report, a dump, the same run as a command line.
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
  const { report: html } = await repeat(run, { trace: "embed,attn,kv,ffn,layer,logits,sample,lens", anomalies: true, hash: true, report: true, ...probes });
  save(`${stem()}.html`, [html], "text/html");
  return new Blob([html]).size;
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
export function command(run, origin, probes = []) {
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
  return words.map(quoted).join(" ");
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
