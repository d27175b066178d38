// Cases of loading: the cache, a Hub, lost devices, memory. As in `cases.js`.
import { Doppler } from "@doppler/web";
import { endless, failure, text, tiny, workerWith } from "/support.js";

/** A random model of 6 MB without words, and ids for it. */
const small = "/small/";
const ids = [5, 6, 7];

const set = (key, value) => fetch(`/set/${key}/${value}`);

/** Devices beside the page, by what they were asked for. */
const devices = new Map();

/** `work` with the device that an earlier one had: what is about files needs no pipelines compiled anew. */
async function sharing(work) {
  const original = GPUAdapter.prototype.requestDevice;
  GPUAdapter.prototype.requestDevice = async function (descriptor) {
    const asked = JSON.stringify(descriptor);
    if (!devices.has(asked)) devices.set(asked, Object.assign(await original.call(this, descriptor), { destroy() {} }));
    return devices.get(asked);
  };
  try {
    return await work();
  } finally {
    GPUAdapter.prototype.requestDevice = original;
  }
}

/** A model loaded, asked and closed: what it says, and where its bytes came from. Beside the page on a shared device. */
async function tried(source, prompt, options = {}, maxTokens = 3) {
  if (options.worker === false) return await sharing(() => triedOnce(source, prompt, options, maxTokens));
  return await triedOnce(source, prompt, options, maxTokens);
}

async function triedOnce(source, prompt, options, maxTokens) {
  const from = new Set();
  const model = await Doppler.load(source, { dtype: "f32", onProgress: (progress) => from.add(progress.from), ...options });
  const done = await model.generate(prompt, { maxTokens }).done;
  const { loading, notes, cached } = model.info;
  await model.close();
  return { ids: done.ids, loading, notes, cached, from: [...from] };
}

/** The cache's files of more than `bytes`, with their sizes. */
async function stored(bytes) {
  const found = [];
  const root = await (await navigator.storage.getDirectory()).getDirectoryHandle("doppler", { create: true });
  for await (const content of (await root.getDirectoryHandle("contents", { create: true })).values()) {
    for await (const handle of content.values()) {
      const { size } = await handle.getFile();
      if (size > bytes) found.push({ handle, size });
    }
  }
  return found;
}

async function damage({ handle, size }, how) {
  const file = await handle.createWritable({ keepExistingData: true });
  if (how === "cut") await file.truncate(size - 1);
  else await file.write({ type: "write", position: size / 2, data: new Uint8Array([0xee]) });
  await file.close();
}

/** A model is downloaded once, in a worker and beside the page; what changes, is cut or damaged is fetched again. */
export async function cached() {
  const source = `/tagged${small}`;
  await Doppler.cache.clear();
  await set("version", "1");
  const beside = { worker: false };
  const out = { plain: await tried(small, ids, beside), first: await tried(source, ids), again: await tried(source, ids) };
  out.list = await Doppler.cache.list();
  out.estimate = await Doppler.cache.estimate();
  out.off = await tried(source, ids, { ...beside, cache: false });
  const pieces = await stored(1 << 17);
  for (const piece of pieces) await damage(piece, piece.size > 1 << 20 ? "change" : "cut");
  out.damaged = await tried(source, ids, beside);
  out.mended = await tried(source, ids, beside);
  await set("down", "tagged");
  out.offline = await tried(source, ids, beside);
  await set("down", "");
  await set("version", "2");
  out.changed = await tried(source, ids, beside);
  out.contents = (await stored(1 << 20)).length;
  await Doppler.cache.clear();
  out.both = await Promise.all([tried(source, ids), tried(source, ids)]);
  out.after = await tried(source, ids, beside);
  const model = await Doppler.load(source, { dtype: "f32" });
  out.inUse = await Doppler.cache.remove("small");
  await model.close();
  // The lock goes with the worker, a moment later.
  for (let i = 0; i < 50 && !out.removed; i++) {
    out.removed = await Doppler.cache.remove("small");
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  out.empty = [await Doppler.cache.list(), (await stored(0)).length];
  await set("down", "tagged");
  out.nothing = await failure(Doppler.load(source));
  await set("down", "");
  return out;
}

/** A download that was broken off goes on where it was; memory outside of the GPU stays small. */
export async function interrupted() {
  await Doppler.cache.clear();
  const controller = new AbortController();
  const onProgress = ({ loaded, total }) => loaded > total / 2 && controller.abort();
  const broken = await failure(Doppler.load("/tagged/big/", { dtype: "f32", onProgress, signal: controller.signal }));
  const stopped = (await Doppler.cache.list())[0]?.bytes ?? 0;
  const model = await Doppler.load("/tagged/big/", { dtype: "f32" });
  const { info } = model;
  const resumed = (await model.generate(ids, { maxTokens: 1 }).done).ids;
  await model.close();
  await Doppler.cache.clear();
  const fresh = await Doppler.load("/big/", { dtype: "f32" });
  const uncached = fresh.info;
  const same = (await fresh.generate(ids, { maxTokens: 1 }).done).ids;
  await fresh.close();
  return { broken, stopped, weightBytes: info.weightBytes, loading: info.loading, notes: info.notes, ids: resumed, same, uncached: uncached.loading };
}

/** Where there is no room the model is loaded all the same; models that were not used for longest make some. */
export async function quota() {
  await Doppler.cache.clear();
  const full = `FileSystemSyncAccessHandle.prototype.write = () => { throw new DOMException("full", "QuotaExceededError"); };`;
  // The first large piece finds no room, until another model has gone.
  const evicting = `
    const write = FileSystemSyncAccessHandle.prototype.write;
    let refused = false;
    FileSystemSyncAccessHandle.prototype.write = function (bytes, options) {
      if (bytes.length > 1e6 && !refused) {
        refused = true;
        throw new DOMException("full", "QuotaExceededError");
      }
      return write.call(this, bytes, options);
    };`;
  const little = `navigator.storage.estimate = async () => ({ quota: 1e6, usage: 0 });`;
  const source = `/tagged${small}`;
  const out = { full: await tried(source, ids, { worker: workerWith(full) }), small: await tried(source, ids, { worker: workerWith(little) }) };
  await Doppler.cache.clear();
  await tried(`/tagged${tiny}`, text);
  out.before = (await Doppler.cache.list()).map(({ model }) => model);
  out.evicting = await tried(source, ids, { worker: workerWith(evicting) });
  out.list = (await Doppler.cache.list()).map(({ model }) => model);
  out.again = await tried(source, ids);
  await Doppler.cache.clear();
  return out;
}

/** Models of a Hub: found, compared with their hash, refused with reasons. */
export async function hub() {
  const options = { hub: `${location.origin}/hub`, dtype: "f32", worker: false };
  const bytes = await (await fetch(`${small}model.safetensors`)).arrayBuffer();
  const sum = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  await set("sha256", [...sum].map((byte) => byte.toString(16).padStart(2, "0")).join(""));
  await set("token", "secret");
  await Doppler.cache.clear();
  const out = { first: await tried("test/demo", ids, options), again: await tried("test/demo@v1", ids, options) };
  out.contents = (await stored(1 << 20)).length;
  out.list = (await Doppler.cache.list()).map(({ model }) => model);
  out.mirror = await tried("test/mirror", ids, options);
  await set("down", "hub");
  out.offline = await tried("test/demo", ids, options);
  await set("down", "");
  const refused = (id, more) => failure(Doppler.load(id, { ...options, ...more }));
  // What is here already needs no leave.
  await Doppler.cache.clear();
  out.gated = await refused("test/gated");
  out.gatedToken = await refused("test/gated", { token: "wrong" });
  out.private = await refused("test/private");
  out.token = await tried("test/private", ids, { ...options, token: "secret" });
  out.absent = await refused("test/nothing");
  out.revision = await refused("test/demo@v7");
  await Doppler.cache.clear();
  out.left = (await Doppler.cache.list()).length;
  out.corrupt = await refused("test/corrupt");
  out.kept = (await stored(1 << 20)).length;
  out.corruptUncached = await refused("test/corrupt", { cache: false });
  await Doppler.cache.clear();
  return out;
}

/** Keeps the last device, and loses it when told to. */
const losing = `
  const request = GPUAdapter.prototype.requestDevice;
  GPUAdapter.prototype.requestDevice = async function (descriptor) {
    return (globalThis.lastDevice = await request.call(this, descriptor));
  };
  addEventListener("message", ({ data }) => {
    if (data === "lose") globalThis.lastDevice.destroy();
    if (data === "crash") setTimeout(() => { throw new Error("boom"); });
  });`;

/** A device that is lost, in a worker and beside the page, and a worker that crashes: the model is loaded again. */
export async function lost() {
  const out = {};
  const [original, PageWorker] = [GPUAdapter.prototype.requestDevice, globalThis.Worker];
  let last = null;
  /** The package's own workers, with a handle. */
  class Handled extends PageWorker {
    constructor(url, options) {
      const script = `import "${url}";\n${losing}`;
      super(URL.createObjectURL(new Blob([script], { type: "text/javascript" })), options);
      last = this;
    }
  }
  const run = async (worker, lose) => {
    const [losses, progress] = [[], []];
    const onDeviceLost = (loss) => losses.push(loss);
    const model = await Doppler.load(tiny, { dtype: "f32", worker, onDeviceLost, onProgress: (p) => progress.push(p.loaded) });
    const session = await model.session();
    const talk = await model.session();
    const first = await session.generate(text, { maxTokens: 6 }).done;
    await talk.chat(text, { maxTokens: 4 }).done;
    const second = await session.generate(" And", { maxTokens: 6 }).done;
    const before = progress.length;
    const under = model.generate(text, endless);
    for await (const part of under) {
      lose(model);
      break;
    }
    // Stopping it raced with the loss: what counts is a generation that knows nothing of it.
    const pending = failure(model.generate(text, endless).done);
    const result = { pending: await pending };
    result.dead = model.dead?.kind ?? null;
    const later = await model.generate(text, { maxTokens: 6 }).done;
    const third = await session.generate(" so", { maxTokens: 6 }).done;
    const chat = await talk.chat([{ role: "user", content: text }], { maxTokens: 4 }).done;
    // The same without a loss.
    const calm = await model.session();
    await calm.generate(text, { maxTokens: 6 }).done;
    await calm.generate(" And", { maxTokens: 6 }).done;
    const expected = await calm.generate(" so", { maxTokens: 6 }).done;
    const plain = await model.generate(text, { maxTokens: 6 }).done;
    await model.close();
    return Object.assign(result, { losses, reloaded: progress.length > before, first, second, third, expected, later, plain, chat, length: session.length });
  };
  const given = workerWith(losing);
  out.worker = await run(given, () => given.postMessage("lose"));
  try {
    GPUAdapter.prototype.requestDevice = async function (descriptor) {
      return (last = await original.call(this, descriptor));
    };
    out.beside = await run(false, () => last.destroy());
    GPUAdapter.prototype.requestDevice = original;
    globalThis.Worker = Handled;
    out.crash = await run(true, () => last.postMessage("crash"));
    // Switched off, and given up.
    const still = await Doppler.load(tiny, { dtype: "f32", recover: false });
    last.postMessage("lose");
    out.off = [await failure(still.generate(text, endless).done), await failure(still.session()), still.dead?.kind ?? null];
    const often = await Doppler.load(tiny, { dtype: "f32" });
    out.often = [];
    for (let i = 0; i < 4; i++) {
      const pending = failure(often.generate(text, endless).done);
      last.postMessage("lose");
      out.often.push(await pending);
      await failure(often.session());
    }
    out.given = await failure(often.generate(text).done);
  } finally {
    GPUAdapter.prototype.requestDevice = original;
    globalThis.Worker = PageWorker;
  }
  return out;
}

/** What a model needs is said before it is allocated, and where there is not so much, it is refused. */
export async function memory() {
  const forecast = await Doppler.forecast("/big/", { dtype: "f32" });
  const model = await Doppler.load(tiny, { dtype: "f32" });
  const out = { forecast, tiny: model.info.memory };
  await model.close();
  out.budget = await failure(Doppler.load("/big/", { dtype: "f32", memory: 100e6 }));
  out.enough = (await tried(tiny, text, { memory: 100e6, worker: false })).ids.length;
  // A device that has no memory says so later, and in its own words.
  const poor = `
    const create = GPUDevice.prototype.createBuffer;
    GPUDevice.prototype.createBuffer = function (descriptor) {
      if (descriptor.size < 5e5) return create.call(this, descriptor);
      const error = new GPUOutOfMemoryError("the test says no");
      queueMicrotask(() => this.dispatchEvent(new GPUUncapturedErrorEvent("uncapturederror", { error, bubbles: false })));
      return create.call(this, { ...descriptor, mappedAtCreation: false });
    };`;
  out.poor = await failure(Doppler.load(small, { dtype: "f32", worker: workerWith(poor) }));
  out.option = await failure(Doppler.load(tiny, { memory: "much" }));
  return out;
}

/** Tensors behind 4 GiB. */
export async function huge() {
  const beside = { worker: false };
  const [plain, far] = [await tried(tiny, text, beside), await tried("/huge/", text, beside)];
  const kept = await tried("/tagged/huge/", text, beside);
  const again = await tried("/tagged/huge/", text);
  const [{ files }] = await Doppler.cache.list();
  await Doppler.cache.clear();
  return { plain, far, kept, again, size: files.find(({ name }) => name === "model.safetensors").size };
}

/** GGUF files: from an address, plain and cached, from files, from a Hub; in parts, with a long header, and damaged. */
export async function gguf() {
  await Doppler.cache.clear();
  const folder = "/gguf/";
  const beside = { worker: false };
  const out = { packed: await tried(`${folder}phi3.q8_0.gguf`, ids, beside), moved: await tried(`${folder}llama3.f16.gguf`, ids, beside) };
  out.plain = await tried(`${folder}gemma.f16.gguf`, ids, beside);
  for (const name of ["wide.gguf", "split/tiny-00001-of-00002.gguf"]) {
    const source = `/tagged${folder}${name}`;
    out[name] = { first: await tried(source, ids), again: await tried(source, ids, beside) };
  }
  // Any part of a set names all of it.
  out.second = await tried(`${folder}split/tiny-00002-of-00002.gguf`, ids, beside);
  const file = async (name) => new File([await (await fetch(`${folder}${name}`)).blob()], name.split("/").at(-1));
  const [gemma, phi] = [await file("gemma.f16.gguf"), await file("phi3.q8_0.gguf")];
  const parts = [await file("split/tiny-00002-of-00002.gguf"), await file("split/tiny-00001-of-00002.gguf")];
  out.files = [await tried([gemma], ids, beside), await tried([...parts, new File(["x"], "README.md")], ids, beside)];
  const hub = { hub: `${location.origin}/hub`, ...beside };
  out.hub = await tried("test/gguf:gemma.f16.gguf", ids, hub);
  out.hubEnd = await tried("test/gguf@v1:q8_0", ids, hub);
  await set("down", "hub");
  out.offline = await tried("test/gguf@v1:q8_0", ids, hub);
  await set("down", "");
  out.list = (await Doppler.cache.list()).map(({ model }) => model);
  const refused = (source, more) => failure(Doppler.load(source, { dtype: "f32", ...beside, ...more }));
  out.several = await refused("test/gguf", hub);
  out.typo = await refused("test/gguf:gemma.f61.gguf", hub);
  out.severalFiles = await refused([gemma, phi]);
  out.partMissing = await refused([parts[0]]);
  out.absent = await refused(`${folder}none.gguf`);
  out.cut = await refused(`/fault/cut${folder}gemma.f16.gguf`);
  const broken = new Uint8Array(await gemma.arrayBuffer());
  broken.set([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f], 8);
  out.lying = await refused([new File([broken], "lying.gguf")]);
  out.web = await refused([new File(["<!doctype html><p>not a model, but a page of some length</p>"], "page.gguf")]);
  out.config = await refused([gemma], { files: { "config.json": "{}" } });
  await Doppler.cache.clear();
  return out;
}

/** A folder with a manifest: by its address, plain and cached, as files, with another config; what is not as it says. */
export async function manifest({ questions }) {
  await Doppler.cache.clear();
  const { prompt, tokens } = questions.find(({ chat }) => !chat);
  const folder = "/manifest/";
  const beside = { worker: false };
  const ask = (source, options) => tried(source, prompt, options, tokens);
  const out = { first: await ask(`/tagged${folder}`), again: await ask(`/tagged${folder}`, beside) };
  out.list = (await Doppler.cache.list()).map(({ model, files }) => [model, files.filter(({ name }) => name.endsWith(".bin")).length]);
  await set("down", "tagged");
  out.offline = await ask(`/tagged${folder}`, beside);
  await set("down", "");
  // A copy elsewhere, of which only the manifest is read.
  out.copy = await ask(folder, beside);
  await Doppler.cache.clear();
  const about = await (await fetch(`${folder}manifest.json`)).json();
  const names = ["manifest.json", ...about.texts.concat(about.shards).map(({ name }) => name)];
  const files = await Promise.all(names.map(async (name) => new File([await (await fetch(folder + name)).blob()], name)));
  const config = `${await files.find(({ name }) => name === "config.json").text()} `;
  out.files = await ask(files, { ...beside, files: { "config.json": config } });
  const refused = (source, more) => failure(Doppler.load(source, { dtype: "f32", ...beside, ...more }));
  out.corrupt = await refused(`/fault/corrupt${folder}`);
  out.kept = (await stored(1 << 20)).length;
  out.corruptUncached = await refused(`/fault/corrupt${folder}`, { cache: false });
  out.nowhere = await refused(`/fault/cut${folder}`, { cache: false });
  const changed = (name, change) =>
    Promise.all(files.map(async (file) => (file.name === name ? new File([change(new Uint8Array(await file.arrayBuffer()))], name) : file)));
  const byte = (bytes) => bytes.with(bytes.length / 2, bytes[bytes.length / 2] ^ 1);
  out.corruptFile = await refused(await changed("part-1.bin", byte));
  out.corruptText = await refused(await changed("tokenizer_config.json", byte));
  out.missing = await refused(files.filter(({ name }) => name !== "part-2.bin"));
  out.missingText = await refused(files.filter(({ name }) => name !== "tokenizer.json"));
  out.version = await refused(await changed("manifest.json", () => JSON.stringify({ ...about, version: 2 })));
  // What another program calls so is none.
  const other = await changed("manifest.json", () => `{ "name": "app" }`);
  out.other = await refused(other.filter(({ name }) => !name.endsWith(".bin")));
  await Doppler.cache.clear();
  return out;
}
