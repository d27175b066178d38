// Options as pages give them, checked for names that do not exist, and what the engine is asked for.
import { DopplerError } from "./errors.js";

const LOAD = [
  ...["onProgress", "signal", "dtype", "limits", "context", "prefillChunk", "fusion", "subgroups", "allowUnknownConfig", "allowExtraTensors", "worker"],
  ...["files", "trace", "onRecord", "cache", "hub", "token", "memory", "recover", "onDeviceLost", "set"],
];
/** Files of a model that a text of the page may stand for. */
export const FILES = [
  ...["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"],
  ...["special_tokens_map.json", "added_tokens.json", "chat_template.jinja"],
];
const SAMPLING = ["temperature", "topK", "topP", "minP", "repeatPenalty", "seed"];
const SEEING = ["trace", "traceLayers", "probes", "anomalies", "onRecord"];
const GENERATE = ["maxTokens", ...SAMPLING, "signal", "raw", "hash", "tools", "variables", "dump", "report", "profile", "recordProfile", "candidates", "onPrefill", "config", ...SEEING];
const SESSION = ["capacity", "raw"];
const COMPARING = ["stages", "layers", "all", "signal"];
const COMPARE = [...COMPARING, "name", "isolated", "promptOnly", "floor", "onProgress"];
const COMPARE_DUMPS = [...COMPARING, "names", "worker"];
const DUMP = ["stages", "layers", ...GENERATE.filter((name) => name !== "dump")];

const invalid = (what, message) => new DopplerError("invalid", `${what}: ${message}`);

function check(what, options, known) {
  if (options === null || typeof options !== "object") throw invalid(what, `expected an object of options, found ${options}`);
  for (const name of Object.keys(options)) {
    if (!known.includes(name)) throw invalid(what, `there is no option \`${name}\` (known: ${known.join(", ")})`);
  }
}

/** `options` without what is undefined. */
const given = (options, names) => Object.fromEntries(names.filter((name) => options[name] !== undefined).map((name) => [name, options[name]]));

/** What the engine needs of the options of `load`. */
export function loading(options) {
  check("load", options, LOAD);
  const { context, subgroups = true, allowUnknownConfig = false, allowExtraTensors = false, files = {}, trace, cache = true, hub, memory = null, set } = options;
  check("files", files, FILES);
  const noText = Object.keys(files).find((name) => typeof files[name] !== "string");
  if (noText) throw invalid("files", `${noText}: expected the file's text, found ${typeof files[noText]}`);
  if (hub !== undefined && !URL.canParse(hub)) throw invalid("hub", `expected an address such as https://huggingface.co, found \`${hub}\``);
  if (memory !== null && !(memory >= 0)) throw invalid("memory", `expected a number of bytes, found ${memory}`);
  const inference = given(options, ["dtype", "limits", "prefillChunk", "fusion"]);
  if (context !== undefined) inference.kvcache = { maxTokens: context };
  const debug = trace === undefined ? {} : { trace: tracing(trace) };
  if (set !== undefined) debug.set = typeof set === "string" ? [set] : set;
  const allowed = { allowUnknownConfig, allowExtraTensors };
  return { runtime: { runtime: { inference, debug } }, subgroups, ...allowed, files, cache: Boolean(cache), memory };
}

export function session(options) {
  check("session", options, SESSION);
  return { capacity: options.capacity ?? null, raw: options.raw ?? false };
}

/** What `tokens` asks for. */
export function tokens(input, options) {
  check("tokens", options, ["tools", "variables"]);
  return { prompt: prompt(input, options) };
}

/** What the engine needs of a prompt and the options of `generate`. */
export function generation(input, options) {
  check("generate", options, GENERATE);
  const { maxTokens = 512, hash = false, dump = null } = options;
  const { report = false, profile = null, recordProfile = false, candidates = 0 } = options;
  if (!Number.isInteger(maxTokens) || maxTokens < 0) throw invalid("maxTokens", `expected a whole number, at least 0, found ${maxTokens}`);
  if (!Number.isInteger(candidates) || candidates < 0) throw invalid("candidates", `expected a whole number, at least 0, found ${candidates}`);
  const debug = { anomalies: { enabled: false } };
  // A report tells of findings, and a profile is for the rules.
  const { trace, traceLayers, probes, anomalies = report || recordProfile || profile !== null } = options;
  if (trace !== undefined || traceLayers !== undefined) debug.trace = tracing(trace, traceLayers);
  if (probes !== undefined) debug.probes = probes;
  if (anomalies) debug.anomalies = { enabled: true, ...(anomalies === true ? {} : anomalies) };
  const runtime = merged(options.config ?? {}, { runtime: { debug, inference: { sampling: given(options, SAMPLING) } } });
  const keeping = { dump: dump && dumped(dump), report, profile, recordProfile, candidates };
  return { prompt: prompt(input, options), maxTokens, hash, keeping, runtime };
}

const tracing = (trace, layers) => ({ enabled: true, categories: typeof trace === "string" ? [trace] : (trace ?? []), layers: layers ?? null });

/** A dump as something that is cheap to post. */
export function file(what, dump) {
  if (dump instanceof Blob) return dump;
  if (dump instanceof ArrayBuffer || ArrayBuffer.isView(dump)) return new Blob([dump]);
  throw invalid(what, "expected a dump: a File or Blob, or its bytes");
}

/** What the engine needs to compare `dump` with a run. */
export function comparison(dump, options) {
  check("compare", options, COMPARE);
  const { name = dump.name ?? null, isolated = false, promptOnly = false, floor = null } = options;
  return { ...comparing(options), names: [name, null], isolated, promptOnly, floor };
}

/** Likewise, to compare two dumps. */
export function dumpComparison(a, b, options) {
  check("compare", options, COMPARE_DUMPS);
  const { names = [a.name ?? null, b.name ?? null] } = options;
  return { ...comparing(options), names, isolated: false, promptOnly: false, floor: null };
}

const comparing = ({ stages, layers = null, all = false }) => ({ stages: typeof stages === "string" ? [stages] : (stages ?? null), layers, all });

/** The options of `dump` as those of `generate`. */
export function dumping(options) {
  check("dump", options, DUMP);
  const { stages = ["all"], layers, ...rest } = options;
  return { maxTokens: 1, ...rest, dump: { stages, layers } };
}

const dumped = (dump) => {
  if (typeof dump === "string") return { stages: [dump], layers: null };
  if (Array.isArray(dump)) return { stages: dump, layers: null };
  return { stages: typeof dump.stages === "string" ? [dump.stages] : dump.stages, layers: dump.layers ?? null };
};

/** A text, ids, or messages with what their template is given. */
function prompt(input, { tools = null, variables = {} } = {}) {
  if (typeof input === "string") return { text: input };
  if (ArrayBuffer.isView(input)) return { ids: [...input] };
  if (Array.isArray(input) && input.every((item) => typeof item === "number")) return { ids: input };
  if (Array.isArray(input) && input.every((item) => typeof item?.role === "string")) return { chat: { messages: input, tools, variables } };
  throw invalid("prompt", "expected a text, an array of ids, or an array of messages { role, content }");
}

/** Whether an input is ids, which nothing is added to or masked in. */
export const isIds = (input) => "ids" in prompt(input);

/** Messages, from messages or from a user's text. */
export const messages = (input) => (typeof input === "string" ? [{ role: "user", content: input }] : input);

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

function merged(base, patch) {
  if (!isObject(base) || !isObject(patch)) return patch;
  const out = { ...base };
  for (const [key, value] of Object.entries(patch)) out[key] = key in base ? merged(base[key], value) : value;
  return out;
}
