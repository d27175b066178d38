// Loading a model: from an address, the Hub, files; with another config.json; how far it is; what went wrong.
import { $, bytes, told } from "./dom.js";
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

export function setUp() {
  const dialog = $("load");
  $("open-load").addEventListener("click", () => {
    dialog.showModal();
    $("forecast").hidden = true;
    drawKept($("kept-list"), (name) => (pick(null), ($("source").value = name)));
  });
  $("close-load").addEventListener("click", () => dialog.close());
  $("abort-load").addEventListener("click", () => controller?.abort());
  $("load-form").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  $("load-demo").addEventListener("click", () => {
    pick(null);
    $("source").value = "";
    dialog.close();
    load(DEMO, chosenOptions());
  });
  $("load-forecast").addEventListener("click", forecast);
  $("source").addEventListener("input", () => pick(null));
  for (const id of ["pick-folder", "pick-files"]) {
    $(id).addEventListener("change", (event) => event.target.files.length && pick([...event.target.files]));
  }
  $("read-config").addEventListener("click", readConfig);
  $("config-text").addEventListener("input", sayConfig);
  // A folder may be dropped anywhere.
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", async (event) => {
    event.preventDefault();
    const list = await files.dropped(event.dataTransfer);
    if (!list.length) return;
    pick(list);
    if (dialog.open) return;
    load(list, {});
  });
  on("model", describe);
}

function pick(list) {
  picked = list;
  original = null;
  $("config-text").value = "";
  sayConfig();
  $("picked").textContent = list ? `${files.title(list)}: ${list.map((f) => f.name).slice(0, 8).join(", ")}${list.length > 8 ? " …" : ""}` : "";
  if (list) $("source").value = "";
}

/** What is to be loaded: files, an address, a Hub id, or, where nothing was said, the built-in model. */
const source = () => picked ?? ($("source").value.trim() || DEMO);

async function submit() {
  const problem = configProblem();
  alarm(problem, "load-told");
  if (problem) return;
  const options = chosenOptions();
  $("load").close();
  await load(source(), options);
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
  $("config-told").textContent = "Reading…";
  try {
    const text = await configOf(source());
    JSON.parse(text);
    original = text;
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
  const before = state.model;
  setModel(null, null);
  progress(`Loading ${name}…`, null);
  try {
    await before?.close();
    const onProgress = (p) => progress(sayProgress(name, p), p.total ? p.loaded / p.total : null);
    const model = await Doppler.load(from, { ...options, onProgress, signal: mine.signal, onDeviceLost });
    if (controller !== mine) return await model.close();
    const edited = Boolean(options.files);
    setModel(model, { demo: demo && !edited, edited, name: demo ? "demo" : typeof from === "string" && !/^(\.|https?:)/.test(from) ? from : "MODEL" });
    if (model.info.nonFinite.length) alarm(`Weights that are no numbers: ${model.info.nonFinite.map((t) => t.tensor).slice(0, 4).join(", ")}`);
  } catch (error) {
    if (controller === mine) alarm(error?.name === "AbortError" ? "Loading was stopped." : told(error));
  } finally {
    if (controller === mine) {
      controller = null;
      $("progress").hidden = true;
    }
  }
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
