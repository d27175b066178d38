// Loading a model: from an address, the Hub, files; with another config.json; how far it is; what went wrong.
import { $, bytes, el, told } from "./dom.js";
import * as files from "./files.js";
import { drawKept } from "./kept.js";
import { on, setModel, state } from "./state.js";
import { Doppler } from "./doppler/index.js";

/** The built-in model, beside the page. */
export const DEMO = "./models/demo";

let controller = null;
/** Files that were dropped or chosen; null for an address. */
let picked = null;
/** The text of config.json as it was read; null before. */
let original = null;
/** The edited text that the loaded model has; null for none. */
let applied = null;
/** What the edited text was made for, while it is to be said whether it is for what was chosen since. */
let asking = null;

export function setUp() {
  const dialog = $("load");
  $("open-load").addEventListener("click", () => {
    dialog.showModal();
    $("forecast").hidden = true;
    drawKept($("kept-list"), (name) => choose(null, name));
  });
  $("close-load").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", sayUnapplied);
  $("abort-load").addEventListener("click", () => controller?.abort());
  $("load-form").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  $("load-demo").addEventListener("click", () => {
    choose(null, "");
    submit();
  });
  $("apply-edit").addEventListener("click", () => decide(true));
  $("discard-edit").addEventListener("click", () => decide(false));
  $("unapplied-apply").addEventListener("click", submit);
  $("unapplied-discard").addEventListener("click", () => (decide(false), sayUnapplied()));
  addEventListener("beforeunload", (event) => isUnapplied() && event.preventDefault());
  $("load-forecast").addEventListener("click", forecast);
  $("source").addEventListener("input", () => choose(null, $("source").value));
  for (const id of ["pick-folder", "pick-files"]) {
    $(id).addEventListener("change", (event) => event.target.files.length && choose([...event.target.files]));
  }
  $("read-config").addEventListener("click", readConfig);
  $("config-text").addEventListener("input", sayConfig);
  // A folder may be dropped anywhere.
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", async (event) => {
    event.preventDefault();
    const list = await files.dropped(event.dataTransfer);
    if (!list.length) return;
    choose(list);
    if (dialog.open) return;
    if (asking !== null) return dialog.showModal();
    submit();
  });
  on("model", describe);
}

/** Chooses files, or else an address. An edited config.json stays until it is said what it is for. */
function choose(list, address = "") {
  const before = sourceName();
  picked = list;
  if ($("source").value !== address) $("source").value = address;
  if (isEdited()) asking ??= before;
  else forgetConfig();
  sayConfig();
  $("picked").textContent = list ? `${files.title(list)}: ${list.map((f) => f.name).slice(0, 8).join(", ")}${list.length > 8 ? " …" : ""}` : "";
}

/** The text of config.json, where it is not the one that was read. */
const isEdited = () => $("config-text").value.trim() !== "" && $("config-text").value !== original;

/** Whether it is edited and no model has it. */
const isUnapplied = () => isEdited() && $("config-text").value !== applied;

function forgetConfig() {
  [original, asking] = [null, null];
  $("config-text").value = "";
}

/** Applies the edited text to what is chosen now, or discards it. */
function decide(apply) {
  if (apply) asking = null;
  else forgetConfig();
  alarm(null, "load-told");
  sayConfig();
}

/** Says that an edit is not in the model that is there. */
function sayUnapplied() {
  $("unapplied").hidden = $("load").open || !isUnapplied();
  $("unapplied-text").textContent = `config.json was edited for ${asking ?? sourceName()}, and no model has that yet.`;
}

/** What is chosen, in words. */
function sourceName() {
  const from = source();
  return from === DEMO ? "the built-in model" : typeof from === "string" ? from : `the model of ${files.title(from)}`;
}

/** What is to be loaded: files, an address, a Hub id, or, where nothing was said, the built-in model. */
const source = () => picked ?? ($("source").value.trim() || DEMO);

async function submit() {
  const undecided = asking === null ? null : `Say first what the edited config.json is for: it was made for ${asking}, and ${sourceName()} is chosen.`;
  const problem = undecided ?? configProblem();
  alarm(problem, "load-told");
  if (problem) {
    if (!$("load").open) $("load").showModal();
    $("config-part").open = true;
    return;
  }
  const options = chosenOptions();
  if ($("load").open) $("load").close();
  await load(source(), options);
  sayUnapplied();
}

/** What the model would need in memory, of which only headers are read. */
async function forecast() {
  alarm(configProblem(), "load-told");
  $("forecast").hidden = false;
  $("forecast").textContent = "Reading headers…";
  try {
    $("forecast").textContent = (await Doppler.forecast(source(), chosenOptions())).text;
  } catch (error) {
    $("forecast").hidden = true;
    alarm(told(error), "load-told");
  }
}

/** Options of the dialog, as `Doppler.load` takes them. */
function chosenOptions() {
  const options = { dtype: $("dtype").value };
  if ($("context").value) options.context = Number($("context").value);
  if ($("token").value) options.token = $("token").value;
  if (!$("keep").checked) options.cache = false;
  if ($("floor").checked) options.limits = "floor";
  if ($("no-fusion").checked) options.fusion = false;
  if ($("no-subgroups").checked) options.subgroups = false;
  if ($("unknown").checked) options.allowUnknownConfig = true;
  if ($("extra").checked) options.allowExtraTensors = true;
  const text = $("config-text").value;
  if (text.trim() && text !== original) options.files = { "config.json": text };
  return options;
}

/** Why the text in place of config.json cannot be used; null where it can. */
function configProblem() {
  const text = $("config-text").value;
  if (!text.trim()) return null;
  try {
    const value = JSON.parse(text);
    return value !== null && typeof value === "object" && !Array.isArray(value) ? null : "config.json: expected an object";
  } catch (error) {
    return `config.json: ${error.message}`;
  }
}

function sayConfig() {
  $("undecided").hidden = asking === null;
  $("undecided-text").textContent = `config.json was edited for ${asking}. Now ${sourceName()} is chosen.`;
  $("apply-edit").textContent = `Apply it to ${sourceName()}`;
  const text = $("config-text").value;
  const problem = configProblem();
  $("config-told").textContent = problem ?? (text.trim() && text !== original ? `Loads with these changes: ${changes(text).join(", ") || "none"}.` : "");
}

/** Keys whose values are not the original's, with both. */
function changes(text) {
  const [now, then] = [JSON.parse(text), original ? JSON.parse(original) : {}];
  const keys = [...new Set([...Object.keys(now), ...Object.keys(then)])];
  const spelled = (value) => (value === undefined ? "absent" : JSON.stringify(value));
  return keys.filter((key) => spelled(now[key]) !== spelled(then[key])).map((key) => `${key} ${spelled(then[key])} → ${spelled(now[key])}`);
}

async function readConfig() {
  if (isUnapplied() && asking === null && !confirm("The edited config.json is replaced by the one that is read.")) return;
  $("config-told").textContent = "Reading…";
  try {
    const text = await configOf(source());
    JSON.parse(text);
    [original, asking] = [text, null];
    $("config-text").value = text;
    sayConfig();
  } catch (error) {
    $("config-told").textContent = `config.json could not be read: ${told(error)}`;
  }
}

async function configOf(from) {
  const gguf = (name) => /\.gguf$/i.test(name);
  if (typeof from === "string" ? gguf(from.replace(/[?#].*/, "")) : from.every(({ name }) => gguf(name))) {
    throw new Error("a GGUF file has none, its header says all of it");
  }
  if (typeof from !== "string") {
    const file = files.named(from, "config.json");
    if (!file) throw new Error("it is not among these files");
    return await file.text();
  }
  // `org/name` or `org/name@revision` of the Hub; addresses beside the page begin with `./`.
  const hub = /^([\w.-]+\/[\w.-]+)(?:@([\w./-]+))?$/.exec(from);
  const address = hub && !from.startsWith(".") ? `https://huggingface.co/${hub[1]}/resolve/${hub[2] ?? "main"}` : from;
  const response = await fetch(new URL(`${address.replace(/\/+$/, "")}/config.json`, document.baseURI));
  if (!response.ok) throw new Error(`HTTP status ${response.status}`);
  return await response.text();
}

/** Loads a model in place of the one there is. */
export async function load(from, options) {
  controller?.abort();
  const mine = new AbortController();
  controller = mine;
  alarm(null);
  const demo = from === DEMO;
  const name = typeof from === "string" ? (demo ? "the built-in model" : from) : files.title(from);
  progress(`Loading ${name}…`, null);
  try {
    // One that works stays until the other is there.
    if (state.model?.dead) {
      await letGo(state.model);
      setModel(null, null);
    }
    const onProgress = (p) => progress(sayProgress(name, p), p.total ? p.loaded / p.total : null);
    const model = await Doppler.load(from, { ...options, onProgress, signal: mine.signal, onDeviceLost });
    if (controller !== mine) return await model.close();
    const edited = Boolean(options.files);
    applied = edited ? options.files["config.json"] : null;
    const before = state.model;
    // A model of the Hub is called as there, others by what their folder or file is called.
    const title = typeof from === "string" && !/^(\.|https?:)/.test(from) ? from : model.info.model;
    setModel(model, { demo: demo && !edited, edited, title, name: demo ? "demo" : title });
    await letGo(before);
    if (model.info.nonFinite.length) alarm(`Weights that are no numbers: ${model.info.nonFinite.map((t) => t.tensor).slice(0, 4).join(", ")}`);
  } catch (error) {
    if (controller === mine) failed(error, name, from, options);
  } finally {
    if (controller === mine) {
      controller = null;
      $("progress").hidden = true;
    }
  }
}

/** Ends a model; how that goes is of no interest any more. */
const letGo = (model) => model?.close().catch(() => {});

/** What went wrong, and that the model before is still there. Where both were too much, it can be let go of. */
function failed(error, name, from, options) {
  const before = state.model;
  const why = error?.name === "AbortError" ? `Loading ${name} was stopped.` : told(error);
  alarm(before ? `${why}\n${state.origin.title} is still loaded.` : why);
  if (!before || !["memory", "device"].includes(error?.kind)) return;
  const again = async () => {
    setModel(null, null);
    await letGo(before);
    await load(from, options);
  };
  $("alarm").append(" ", el("button", { type: "button", text: `Let go of ${state.origin.title} and try again`, onclick: again }));
}

const FROM = { network: "from the network", cache: "from this browser's cache", file: "from files" };

const sayProgress = (name, { loaded, total, tensor, from }) =>
  `${name}: ${bytes(loaded)} of ${bytes(total)} ${FROM[from] ?? ""}${tensor ? ` · ${tensor}` : ""}`;

function progress(text, share) {
  $("progress").hidden = false;
  $("progress-text").textContent = text;
  if (share === null) $("progress-bar").removeAttribute("value");
  else $("progress-bar").value = share;
}

/** The device is gone, or the engine; it may come back by itself. */
function onDeviceLost({ kind, reason, message, recovering }) {
  const what = kind === "crash" ? "The engine crashed" : `The GPU device was lost (${reason})`;
  alarm(`${what}: ${message || "the browser says no more"}. ${recovering ? "The model is being loaded again; ask once more." : "Load the model again."}`);
}

export function alarm(text, id = "alarm") {
  $(id).hidden = !text;
  $(id).textContent = text ?? "";
}

function describe() {
  const info = state.model?.info;
  const edited = state.origin?.edited ? ", config.json changed" : "";
  $("about-model").textContent = info ? `${info.model}${edited} · ${info.preset} · ${info.layers} layers · ${info.weights}, ${bytes(info.weightBytes)} · activations ${info.dtype}` : "No model.";
}
