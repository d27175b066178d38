// Cases of loading: the cache, a Hub, lost devices, memory. As in `cases.js`.
import { Doppler } from "@doppler/web";
import { demo, endless, failure, text, tiny, workerWith } from "/support.js";

const set = (key, value) => fetch(`/set/${key}/${value}`);

/** A model loaded, asked and closed: what it says, and where its bytes came from. */
async function tried(source, prompt, options = {}) {
  const from = new Set();
  const model = await Doppler.load(source, { dtype: "f32", onProgress: (progress) => from.add(progress.from), ...options });
  const { ids } = await model.generate(prompt, { maxTokens: 3 }).done;
  const { loading, notes, cached } = model.info;
  await model.close();
  return { ids, loading, notes, cached, from: [...from] };
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
export async function cached({ questions }) {
  const { prompt } = questions.find((question) => !question.chat);
  const source = `/tagged${demo}`;
  await Doppler.cache.clear();
  await set("version", "1");
  const out = { plain: await tried(demo, prompt), first: await tried(source, prompt), again: await tried(source, prompt) };
  out.list = await Doppler.cache.list();
  out.estimate = await Doppler.cache.estimate();
  out.beside = await tried(source, prompt, { worker: false });
  out.off = await tried(source, prompt, { cache: false });
  const large = (await stored(1 << 20)).concat(await stored(1 << 17));
  await damage(large[0], "change");
  await damage(large.at(-1), "cut");
  out.damaged = await tried(source, prompt);
  out.mended = await tried(source, prompt);
  await set("down", "tagged");
  out.offline = await tried(source, prompt);
  await set("down", "");
  await set("version", "2");
  out.changed = await tried(source, prompt);
  out.contents = (await stored(1 << 20)).length;
  await Doppler.cache.clear();
  out.both = await Promise.all([tried(source, prompt), tried(source, prompt)]);
  out.after = await tried(source, prompt);
  const model = await Doppler.load(source, { dtype: "f32" });
  out.inUse = await Doppler.cache.remove("demo");
  await model.close();
  // The lock goes with the worker, a moment later.
  for (let i = 0; i < 50 && !out.removed; i++) {
    out.removed = await Doppler.cache.remove("demo");
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
  const { ids } = await model.generate([5, 6, 7], { maxTokens: 1 }).done;
  await model.close();
  await Doppler.cache.clear();
  const fresh = await Doppler.load("/big/", { dtype: "f32" });
  const uncached = fresh.info;
  const same = (await fresh.generate([5, 6, 7], { maxTokens: 1 }).done).ids;
  await fresh.close();
  return { broken, stopped, weightBytes: info.weightBytes, loading: info.loading, notes: info.notes, ids, same, uncached: uncached.loading };
}

/** Where there is no room the model is loaded all the same; models that were not used for longest make some. */
export async function quota({ questions }) {
  const { prompt } = questions.find((question) => !question.chat);
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
  const small = `navigator.storage.estimate = async () => ({ quota: 1e6, usage: 0 });`;
  const source = `/tagged${demo}`;
  const out = { full: await tried(source, prompt, { worker: workerWith(full) }), small: await tried(source, prompt, { worker: workerWith(small) }) };
  await Doppler.cache.clear();
  await tried(`/tagged${tiny}`, text);
  out.before = (await Doppler.cache.list()).map(({ model }) => model);
  out.evicting = await tried(source, prompt, { worker: workerWith(evicting) });
  out.list = (await Doppler.cache.list()).map(({ model }) => model);
  out.again = await tried(source, prompt);
  await Doppler.cache.clear();
  return out;
}

/** Models of a Hub: found, compared with their hash, refused with reasons. */
export async function hub({ questions }) {
  const { prompt } = questions.find((question) => !question.chat);
  const options = { hub: `${location.origin}/hub`, dtype: "f32" };
  const bytes = await (await fetch(`${demo}model.safetensors`)).arrayBuffer();
  const sum = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  await set("sha256", [...sum].map((byte) => byte.toString(16).padStart(2, "0")).join(""));
  await set("token", "secret");
  await Doppler.cache.clear();
  const out = { first: await tried("test/demo", prompt, options), again: await tried("test/demo@v1", prompt, options) };
  out.contents = (await stored(1 << 20)).length;
  out.list = (await Doppler.cache.list()).map(({ model }) => model);
  out.mirror = await tried("test/mirror", prompt, options);
  await set("down", "hub");
  out.offline = await tried("test/demo", prompt, options);
  await set("down", "");
  const refused = (id, more) => failure(Doppler.load(id, { ...options, ...more }));
  out.gated = await refused("test/gated");
  out.gatedToken = await refused("test/gated", { token: "wrong" });
  out.private = await refused("test/private");
  out.token = await tried("test/private", prompt, { ...options, token: "secret" });
  out.absent = await refused("test/nothing");
  out.revision = await refused("test/demo@v7");
  await Doppler.cache.clear();
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
  out.enough = (await tried(tiny, text, { memory: 100e6 })).ids.length;
  // A device that has no memory says so later, and in its own words.
  const poor = `
    const create = GPUDevice.prototype.createBuffer;
    GPUDevice.prototype.createBuffer = function (descriptor) {
      if (descriptor.size < 1e6) return create.call(this, descriptor);
      const error = new GPUOutOfMemoryError("the test says no");
      queueMicrotask(() => this.dispatchEvent(new GPUUncapturedErrorEvent("uncapturederror", { error, bubbles: false })));
      return create.call(this, { ...descriptor, mappedAtCreation: false });
    };`;
  out.poor = await failure(Doppler.load(demo, { dtype: "f32", worker: workerWith(poor) }));
  out.option = await failure(Doppler.load(tiny, { memory: "much" }));
  return out;
}

/** Tensors behind 4 GiB. */
export async function huge() {
  const [plain, far] = [await tried(tiny, text), await tried("/huge/", text)];
  const kept = await tried("/tagged/huge/", text);
  const again = await tried("/tagged/huge/", text);
  const [{ files }] = await Doppler.cache.list();
  await Doppler.cache.clear();
  return { plain, far, kept, again, size: files.find(({ name }) => name === "model.safetensors").size };
}
