// Loading, on the engine's side: a model's files are found and read, its device is opened, and what it needs in memory is
// said before anything is allocated.
import * as wasm from "./doppler_web.js";
import * as devices from "./device.js";
import { DopplerError } from "./errors.js";
import * as files from "./files.js";
import { FILES } from "./options.js";

/** Bytes of weights after which loading waits for the device to have taken them: they lie in memory until then. */
const UPLOADED = 64 << 20;
const WEIGHTS = "model.safetensors";
const INDEX = "model.safetensors.index.json";
const MANIFEST = "manifest.json";

/**
 * A model on its device, the browser's own device, the folder that it came from, and what a page is told of it. With
 * `options.forecast`, only the forecast of its memory, as `info`.
 */
export async function load(source, options, signal, tell) {
  const start = performance.now();
  const folder = await files.open(source, signal, { cached: options.cache });
  let native = null;
  try {
    const about = await described(folder, options);
    const floor = options.runtime.runtime?.inference?.limits === "floor";
    const runtime = JSON.stringify(options.runtime);
    const opened = await devices.open((about) => wasm.open_device(runtime, about), options.subgroups && !floor);
    native = opened.native;
    signal.throwIfAborted();
    if (options.forecast) {
      const reading = new Reading(about.files, native, signal, tell);
      const info = JSON.parse(await wasm.forecast(opened.device, JSON.stringify(about.json), reading));
      native?.destroy();
      folder.close();
      return { model: null, info };
    }
    const model = await transfer(opened, about.json, about.files, signal, tell);
    await Promise.all(about.files.map((file) => file.finish()));
    await folder.finish();
    const info = JSON.parse(model.info());
    const { network, cache, file, peak } = folder.tally;
    const loading = { milliseconds: performance.now() - start, network, cache, file, peak, wasm: wasm.memory_bytes() };
    return { model, native, folder, info: { ...info, loading, cached: folder.kept, notes: [...info.notes, ...folder.notes] } };
  } catch (error) {
    native?.destroy();
    folder.close();
    throw error;
  }
}

/** The model that `json` describes, the weights in `files` on the device that was `opened`, its kernels compiled. */
export async function transfer({ device, native }, json, files, signal, tell) {
  const model = await wasm.Model.load(device, JSON.stringify(json), new Reading(files, native, signal, tell));
  // A browser tells later that there was no memory for a buffer.
  await native?.queue.onSubmittedWorkDone();
  model.check();
  if (native) await devices.compileAhead(native, () => model.build());
  return model;
}

/** What Rust is told of a model's files, and the files of its weights. */
async function described(folder, { files: own = {}, runtime, allowUnknownConfig, allowExtraTensors, memory }) {
  const manifest = folder.wanted ? null : await listed(folder);
  const gguf = manifest ? null : ggufFiles(folder);
  if (gguf) {
    const text = Object.keys(own)[0];
    if (text) throw new DopplerError("invalid", `files: a GGUF file stands for itself, without a ${text}`);
    const weights = await found(folder, gguf);
    const json = { name: folder.name, texts: null, words: true, weights: sizesOf(weights), shards: null, manifest: null, runtime, allowUnknownConfig, allowExtraTensors, memory };
    return { files: weights, json };
  }
  const read = async (name) => own[name] ?? (manifest && !manifest.has(name) ? null : await folder.text(name));
  const texts = Object.fromEntries(await Promise.all(FILES.map(async (name) => [name, await read(name)])));
  if (texts["config.json"] === null) throw new DopplerError("io", `${folder.name}: no config.json${await folder.told()}`);
  const absent = manifest?.texts.find((name) => texts[name] === null);
  if (absent) throw new DopplerError("io", `${folder.name}: there is no ${absent}, which ${MANIFEST} lists; restore it, or convert the model again`);
  const { weights, shards } = manifest ? { weights: await found(folder, manifest.shards), shards: null } : await findWeights(folder);
  const allowed = { allowUnknownConfig, allowExtraTensors };
  const json = { name: folder.name, texts, words: true, weights: sizesOf(weights), shards, manifest: manifest?.text ?? null, runtime, ...allowed, memory };
  return { files: weights, json };
}

const sizesOf = (weights) => weights.map(({ name, size, checked }) => ({ name, size, checked }));

/** The manifest of a folder, whose files are from now on those that it lists; null where there is none. */
async function listed(folder) {
  const text = await folder.text(MANIFEST);
  const files = text === null ? null : JSON.parse(wasm.manifest_files(`${folder.name}/${MANIFEST}`, text));
  if (!files) return null;
  folder.list([...files.texts, ...files.shards]);
  const [texts, shards] = [files.texts, files.shards].map((list) => list.map(({ name }) => name));
  return { text, texts, shards, has: (name) => texts.includes(name) };
}

/** Names of the GGUF files that are the model, in order; null where it is a folder of safetensors. */
function ggufFiles(folder) {
  const { wanted, sizes } = folder;
  if (!sizes) return wanted && JSON.parse(wasm.gguf_set(wanted));
  if (!wanted && (sizes.has(WEIGHTS) || sizes.has(INDEX))) return null;
  return JSON.parse(wasm.choose_gguf(folder.name, folder.how, wanted ?? undefined, JSON.stringify(Object.fromEntries(sizes))));
}

/** The files called `names`, all of which must be there. */
async function found(folder, names) {
  const files = await Promise.all(names.map((name) => folder.weights(name)));
  const missing = names.filter((_, i) => !files[i]);
  if (missing.length === 0) return files;
  if (names.length === 1) throw new DopplerError("io", `${folder.name}: there is no file ${names[0]}${await folder.told()}`);
  const list = missing.map((name) => `\n  ${name}`).join("");
  throw new DopplerError("weights", `${folder.name}: ${missing.length} of ${names.length} weight files are missing:${list}`);
}

/** What Rust reads weights through. */
class Reading {
  #files;
  #native;
  #signal;
  #tell;
  #expected = new Map();
  #uploaded = 0;
  #from = null;
  constructor(weights, native, signal, tell) {
    this.#files = weights;
    this.#native = native;
    this.#signal = signal;
    this.#tell = tell;
  }
  async read(file, start, end) {
    this.#signal.throwIfAborted();
    await this.#expected.get(file);
    const bytes = await this.#files[file].read(start, end);
    this.#from = this.#files[file].from;
    this.#uploaded += bytes.length;
    if (this.#uploaded > UPLOADED && this.#native) {
      this.#uploaded = 0;
      await this.#native.queue.onSubmittedWorkDone();
    }
    this.#signal.throwIfAborted();
    return bytes;
  }
  expect(file, ranges) {
    const expected = this.#files[file].expect([...ranges]);
    // Its error is told to whoever reads.
    expected.catch(() => {});
    this.#expected.set(file, expected);
  }
  progress(loaded, total, tensor) {
    this.#tell({ progress: { loaded, total, tensor, from: this.#from } });
  }
  records(records) {
    this.#tell({ records });
  }
}

/** The weight files as transformers finds them: `model.safetensors`, else the files of its index. */
async function findWeights(folder) {
  const single = await folder.weights(WEIGHTS);
  if (single) return { weights: [single], shards: null };
  const text = await folder.text(INDEX);
  if (text === null) {
    throw new DopplerError("io", `${folder.name}: neither ${WEIGHTS} nor ${INDEX}${await folder.told()}; Doppler reads safetensors and GGUF files`);
  }
  return { weights: await found(folder, JSON.parse(wasm.shard_files(INDEX, text))), shards: { name: INDEX, text } };
}
