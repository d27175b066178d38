// What the page does: each exported function is a case, which gives what `browser.rs` checks. `inputs` comes from there.
import { Doppler } from "@doppler/web";
import { demo, endless, failure, golden, text, tiny, workerWith } from "/support.js";

export * from "/loading.js";

async function base64(bytes) {
  const reader = new FileReader();
  const read = new Promise((resolve) => (reader.onload = resolve));
  reader.readAsDataURL(new Blob([bytes]));
  await read;
  return reader.result.split(",", 2)[1];
}

const ask = (model, { prompt, chat }, options) => (chat ? model.chat(prompt, options) : model.generate(prompt, options));

/** Loading tells how far it is; every question's ids, with subgroups and without. */
export async function exam({ questions }) {
  const out = { device: [], progress: [], answers: [], plain: [] };
  for (const subgroups of [true, false]) {
    const model = await Doppler.load(demo, { dtype: "f32", subgroups, onProgress: (p) => out.progress.push(p) });
    out.device.push(model.info.device);
    out.info = model.info;
    for (const question of subgroups ? questions : questions.slice(2, 4)) {
      const generation = ask(model, question, { maxTokens: question.tokens, hash: true });
      const parts = [];
      for await (const part of generation) parts.push(part);
      const done = await generation.done;
      (subgroups ? out.answers : out.plain).push({ ...done, parts });
    }
    await model.close();
  }
  return out;
}

/** Every value of golden models, beside the page and in a worker, in f32 and f16. */
export async function stages({ goldens }) {
  const out = [];
  for (const { name, prompt, dtype, worker } of goldens) {
    const model = await Doppler.load(golden(name), { dtype, worker });
    const { text, ids } = await model.generate(prompt, { maxTokens: 6 }).done;
    out.push({ name, dtype, ids, text, info: model.info, dump: await base64(await model.dump(prompt)) });
    await model.close();
  }
  return out;
}

/** Values that are changed while they are computed, and what a page cannot say of them. */
export async function changed({ changed: { model: name, prompt, set } }) {
  const model = await Doppler.load(golden(name), { dtype: "f32", set });
  const { ids } = await model.generate(prompt, { maxTokens: 6 }).done;
  const out = { ids, notes: model.info.notes, dump: await base64(await model.dump(prompt)) };
  out.otherwise = await failure(model.generate(prompt, { config: { runtime: { debug: { set: ["ffn_out=zero"] } } } }).done);
  await model.close();
  out.file = await failure(Doppler.load(golden(name), { set: "ffn_out@1=from:other.safetensors" }));
  return out;
}

/** Records of a prompt and two decode steps. */
export async function records({ lines }) {
  const model = await Doppler.load(golden(lines.model), { dtype: "f32" });
  const seen = [];
  const { trace, traceLayers, probes } = lines;
  const options = { maxTokens: 3, trace, traceLayers, probes, anomalies: true, hash: true, onRecord: (record) => seen.push(record) };
  const watched = await model.generate(lines.prompt, options).done;
  const plain = await model.generate(lines.prompt, { maxTokens: 3, hash: true }).done;
  await model.close();
  return { seen, watched, plain };
}

/** Two sessions of one model at the same time, each like one alone; a conversation is not read twice. */
export async function sessions() {
  const model = await Doppler.load(tiny, { dtype: "f32" });
  const [a, b] = [await model.session(), await model.session({ capacity: 16 })];
  const prompts = [text, "And a line."];
  const together = await Promise.all([a.generate(prompts[0], { maxTokens: 8 }).done, b.generate(prompts[1], { maxTokens: 8 }).done]);
  const alone = [];
  for (const prompt of prompts) alone.push(await model.generate(prompt, { maxTokens: 8 }).done);
  const talk = await model.session();
  const messages = [{ role: "user", content: text }];
  const first = await talk.chat(messages, { maxTokens: 24 }).done;
  messages.push({ role: "assistant", content: first.text }, { role: "user", content: "And what color is grass?" });
  const second = await talk.chat(messages, { maxTokens: 24 }).done;
  const fresh = await model.chat(messages, { maxTokens: 24 }).done;
  // Continued by text, and sampled: the same seed, the same text.
  const sampled = [];
  for (const seed of [7, 7]) {
    const session = await model.session();
    await session.generate(prompts[0], { maxTokens: 0 }).done;
    sampled.push(await session.generate(" very", { maxTokens: 8, temperature: 1, topK: 20, seed }).done);
    await session.close();
  }
  const length = talk.length;
  await model.close();
  return { together, alone, first, second, fresh, sampled, length };
}

/** Generations are stopped by a signal, by leaving the loop, by `stop`; the model goes on. */
export async function stopped() {
  const model = await Doppler.load(tiny, { dtype: "f32" });
  const before = await model.generate(text, { maxTokens: 24 }).done;
  const controller = new AbortController();
  const aborted = model.generate(text, { ...endless, signal: controller.signal });
  let count = 0;
  const reading = (async () => {
    for await (const part of aborted) if (++count === 3) controller.abort();
  })();
  const byLoop = await failure(reading);
  const byDone = await failure(aborted.done);
  const atOnce = await failure(model.generate(text, { signal: AbortSignal.abort() }).done);
  const left = model.generate(text, endless);
  for await (const part of left) if (part.step === 2) break;
  const stop = model.generate(text, endless);
  setTimeout(() => stop.stop(), 50);
  const thrown = model.generate(text, { ...endless, trace: "sample", onRecord() { throw new Error("enough"); } });
  const out = { byLoop, byDone, atOnce, before, left: await left.done, stop: await stop.done, thrown: await failure(thrown.done) };
  out.after = await model.generate(text, { maxTokens: 24 }).done;
  const pending = failure(model.generate(text, endless).done);
  await model.close();
  out.closed = await pending;
  out.later = await failure(model.generate(text).done);
  // Beside the page, closing in the middle must leave an engine that the next model can use.
  const beside = await Doppler.load(tiny, { dtype: "f32", worker: false });
  const session = await beside.session();
  const both = [session.generate(text, { maxTokens: 200 }), session.generate(text)];
  await session.close();
  out.session = [await both[0].done, await failure(both[1].done), await failure(session.generate(text).done)];
  const cut = failure(beside.generate(text, endless).done);
  await beside.close();
  out.cut = await cut;
  const next = await Doppler.load(tiny, { dtype: "f32", worker: false });
  out.next = await next.generate(text, { maxTokens: 24 }).done;
  await next.close();
  return out;
}

/** Servers that fail, and the questions that can be asked all the same. */
export async function servers({ questions }) {
  const prompt = questions.find((q) => !q.chat).prompt;
  const ids = async (source) => {
    const model = await Doppler.load(source, { dtype: "f32" });
    const done = await model.generate(prompt, { maxTokens: 24 }).done;
    await model.close();
    return done.ids;
  };
  const refused = (source, options) => failure(Doppler.load(source, options));
  const out = { breaks: await ids(`/fault/breaks${demo}`), whole: await ids(`/fault/whole${demo}`) };
  const names = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"];
  const files = await Promise.all(names.map(async (name) => new File([await (await fetch(demo + name)).blob()], name)));
  out.files = await ids(files);
  out.noWeights = await refused({ files: files.slice(0, 4) });
  out.cut = await refused(`/fault/cut${demo}`);
  out.cutFile = await refused([...files.slice(0, 4), new File([files[4].slice(0, 5_000_000)], "model.safetensors")]);
  out.short = await refused(`/fault/short${demo}`);
  out.changes = await refused(`/fault/changes${demo}`);
  out.nowhere = await refused("/models/none/");
  const controller = new AbortController();
  setTimeout(() => controller.abort(), 1000);
  const start = performance.now();
  out.stalls = await refused(`/fault/stalls${demo}`, { signal: controller.signal });
  out.stalled = performance.now() - start;
  return out;
}

/** Files of several pieces, with gaps, read in uneven parts, front to back and not. */
export async function pieces() {
  const { open } = await import("/web/files.js");
  const size = 40_000_003;
  const folder = await open({ url: new URL("/pattern/", location.href).href }, new AbortController().signal);
  const file = await folder.weights(String(size));
  const expected = (i) => (i * 31 + (i >> 8) * 7) & 255;
  await file.expect([1_000_000, 18_000_000, 18_000_000, 20_000_000, 25_000_000, size]);
  const wrong = [];
  const reads = [[0, 8], [8, 200_000], [1_000_000, 1_000_001], [1_000_001, 18_000_000], [18_000_000, 26_000_000], [26_000_000, size], [300_000, 300_100], [17_000_000, 25_000_007], [size - 1, size]];
  for (const [start, end] of reads) {
    const bytes = await file.read(start, end);
    const bad = bytes.length === end - start ? bytes.findIndex((byte, i) => byte !== expected(start + i)) : -2;
    if (bad !== -1) wrong.push({ start, end, bad });
  }
  return { size: file.size, wrong };
}

/** Mistakes are told as the engine tells them. */
export async function mistakes() {
  const model = await Doppler.load(golden("gemma2"), { dtype: "f32" });
  const out = {
    option: await failure(Doppler.load(demo, { dtyp: "f32" })),
    dtype: await failure(Doppler.load(golden("gemma2"), { dtype: "f64" })),
    context: await failure(Doppler.load(golden("gemma2"), { context: 1e6 })),
    address: await failure(Doppler.load(7)),
    stage: await failure(model.dump([1, 2], { stages: ["layer_uot"] })),
    id: await failure(model.generate([1, 99999]).done),
    empty: await failure(model.generate("").done),
    category: await failure(model.generate([1], { trace: "fnn" }).done),
    probe: await failure(model.generate([1], { probes: [{ id: "a", stage: "layer_out", layers: 99 }] }).done),
    sampling: await failure(model.generate([1], { temperature: -1 }).done),
    generate: await failure((async () => model.generate([1], { maxToken: 1 }))()),
    files: await failure(Doppler.load(demo, { files: { "model.safetensors": "" } })),
    text: await failure(Doppler.load(demo, { files: { "config.json": {} } })),
    config: await failure(Doppler.load(demo, { files: { "config.json": "{" } })),
    candidates: await failure((async () => model.generate([1], { candidates: -1 }))()),
    tokens: await failure(model.tokens([1, 99999])),
  };
  await model.close();
  return out;
}

/** The files of a golden model, with some keys of its config changed. */
async function edited(name, keys) {
  const files = ["tokenizer.json", "tokenizer_config.json", "model.safetensors"];
  const read = async (file) => (await fetch(golden(name) + file)).blob();
  const config = { ...JSON.parse(await (await read("config.json")).text()), ...keys };
  return [new File([JSON.stringify(config)], "config.json"), ...(await Promise.all(files.map(async (file) => new File([await read(file)], file))))];
}

/** A dump of so many tokens that what there is to compare with has gigabytes: sketches of scores. */
function sketched(tokens, table) {
  const [heads, width] = [4, 64];
  const end = 4 * tokens;
  const header = {
    __metadata__: { stage_table: String(table) },
    input_ids: { dtype: "I32", shape: [tokens], data_offsets: [0, end] },
    "sketch.layer.0.attn_scores": { dtype: "F32", shape: [heads, tokens, width], data_offsets: [end, end + 4 * heads * tokens * width] },
  };
  const text = new TextEncoder().encode(JSON.stringify(header));
  const length = new DataView(new ArrayBuffer(8));
  length.setBigUint64(0, BigInt(text.length), true);
  return new Blob([length, text, new Uint8Array(end + 4 * heads * tokens * width)]);
}

/** The dump of transformers and one of the native engine, on the model as it is and on one with another config. */
export async function compare({ compared }) {
  const model = await Doppler.load(golden(compared.model), { dtype: "f32" });
  const theirs = new File([await (await fetch(`${golden(compared.model)}golden.safetensors`)).blob()], "golden.safetensors");
  const native = await (await fetch("/native.safetensors")).arrayBuffer();
  const out = { phases: [] };
  out.free = await model.compare(theirs, { all: true, onProgress: ({ what, done, total }) => out.phases.push([what, done, total]) });
  out.alone = await model.compare(theirs, { isolated: true, name: "transformers" });
  out.steps = await model.compare(native);
  out.prompt = await model.compare(new Uint8Array(native), { promptOnly: true, stages: ["layer_out", "logits_final"], layers: [0, 2] });
  out.estimated = await model.compare(theirs, { floor: "dumps" });
  // A run meanwhile is not disturbed.
  const plain = await model.generate(text, { maxTokens: 8, hash: true }).done;
  const [, meanwhile] = await Promise.all([model.compare(native), model.generate(text, { maxTokens: 8, hash: true }).done]);
  out.meanwhile = [plain.logits, meanwhile.logits];
  // As many tokens as theirs: what one side lacks would not be judged.
  const own = await model.dump(compared.prompt, { maxTokens: 1 });
  out.own = await base64(own);
  out.dumps = await Doppler.compare(theirs, own, { names: ["golden", "browser"] });
  const partial = await model.dump(compared.prompt, { stages: ["layer_out"] });
  const part = new Uint8Array(partial.length + 5);
  part.set(partial, 3);
  out.partial = await model.compare(part.subarray(3, 3 + partial.length));
  out.layers = await model.compare(partial, { isolated: true });
  out.errors = {
    stage: await failure(model.compare(theirs, { stages: "layer_uot" })),
    layer: await failure(model.compare(theirs, { layers: [7] })),
    floor: await failure(model.compare(theirs, { isolated: true, floor: "dumps" })),
    unknownFloor: await failure(model.compare(theirs, { floor: "exact" })),
    option: await failure(model.compare(theirs, { isolate: true })),
    dump: await failure(model.compare("golden.safetensors")),
    bytes: await failure(model.compare(new Uint8Array(100))),
    memory: await failure(model.compare(sketched(6000, compared.stageTable), { floor: "measured" })),
    prompts: await failure(Doppler.compare(theirs, await model.dump([1, 2, 3]))),
  };
  await model.close();
  out.errors.closed = await failure(model.compare(theirs));
  const wrong = await Doppler.load(await edited(compared.model, compared.edit), { dtype: "f32" });
  out.wrong = await wrong.compare(theirs);
  out.wrongAlone = await wrong.compare(theirs, { isolated: true });
  await wrong.close();
  return out;
}

/** A comparison that is aborted while the oracle computes: the page is told at once, and the engine soon does no more. */
export async function aborted() {
  const worker = new Worker("/web/worker.js", { type: "module" });
  const model = await Doppler.load(demo, { dtype: "f32", worker });
  const dump = await model.dump("The color of the sky is blue. ".repeat(10), { stages: ["layer_out"], maxTokens: 0 });
  const controller = new AbortController();
  const later = [];
  let [start, told] = [0, 0];
  worker.addEventListener("message", ({ data }) => start && data.progress && later.push(data.progress.what));
  const onProgress = ({ what }) => {
    if (start || what !== "measuring the floor, f64") return;
    start = performance.now();
    controller.abort();
  };
  const comparing = failure(model.compare(dump, { floor: "measured", signal: controller.signal, onProgress })).then((error) => {
    told = performance.now() - start;
    return error;
  });
  const error = await comparing;
  const next = await model.generate("The color of the sky is", { maxTokens: 3 }).done;
  // What would come if it went on: the other oracle, and the comparison.
  await new Promise((resolve) => setTimeout(resolve, 1000));
  await model.close();
  return { error, told, later, next };
}

/** Reports, records of loading, dispatches and times, profiles, and ids that end a text in raw runs. */
export async function seeing({ compared }) {
  const { model: name, prompt } = compared;
  const loading = [];
  // An id that the model says again and again ends texts: then that is no finding.
  const files = await edited(name, { eos_token_id: compared.repeated });
  const model = await Doppler.load(files, { dtype: "f32", trace: "loader", onRecord: (record) => loading.push(record) });
  const seen = (list) => (record) => list.push(record);
  const [dispatches, alone, plain] = [[], [], []];
  const options = { maxTokens: 3, hash: true };
  const out = { loading, dispatches, alone, plain, info: model.info };
  out.timed = await model.generate(prompt, { ...options, trace: ["kernels", "perf"], onRecord: seen(dispatches) }).done;
  // At the same time, one that is to show its dispatches and one that is not.
  const both = [
    model.generate(prompt, { ...options, trace: "kernels", onRecord: seen(alone) }),
    model.generate(prompt, { ...options, trace: "sample", onRecord: seen(plain) }),
  ];
  out.both = await Promise.all(both.map((generation) => generation.done));
  const probes = [{ id: "first", stage: "layer_out", tokens: -1, dims: [3] }];
  out.report = await model.generate(prompt, { ...options, report: true, probes, trace: "lens" }).done;
  // Judged by themselves runs are healthy; by a profile of which every range is a thousand times smaller they are not.
  out.recorded = await model.generate(text, { maxTokens: 1, recordProfile: true }).done;
  out.healthy = await model.generate(text, { maxTokens: 1, profile: out.recorded.profile }).done;
  const small = structuredClone(out.recorded.profile);
  for (const range of small.ranges.flatMap(({ prompt, decode }) => [prompt, decode]).filter(Boolean)) {
    for (const of of Object.keys(range)) range[of] = range[of].map((x) => x / 1000);
  }
  out.judged = await model.generate(text, { maxTokens: 1, profile: small }).done;
  out.noProfile = await failure(model.generate(text, { profile: { ranges: [] } }).done);
  out.ofAnother = await failure(model.generate(text, { profile: { ...small, model: "another" } }).done);
  out.unjudged = await failure(model.generate(text, { profile: small, anomalies: false }).done);
  out.repeated = await model.generate(compared.repeating, { maxTokens: 26, anomalies: { repetitions: 4 } }).done;
  await model.close();
  // Weights that are no numbers: no token can be chosen, which a report shows too.
  const bytes = new Uint8Array(await files.at(-1).arrayBuffer());
  const header = 8 + Number(new DataView(bytes.buffer).getBigUint64(0, true));
  bytes.fill(0xff, header, header + 2000);
  const broken = await Doppler.load([...files.slice(0, -1), new File([bytes], "model.safetensors")], { dtype: "f32" });
  const ended = await broken.generate(prompt, { report: true }).done.then((done) => done, (error) => error);
  out.broken = { kind: ended.kind ?? null, report: ended.report };
  const compareBroken = await broken.compare(await (await fetch("/native.safetensors")).blob(), { promptOnly: true });
  out.brokenCompared = { differs: compareBroken.differs, notes: compareBroken.report.notes };
  await broken.close();
  return out;
}

/** A worker that throws, and one whose memory is overwritten: whoever waits is told, and so is whoever comes later. */
export async function crashes() {
  const code = `
    import init from "${location.origin}/web/doppler_web.js";
    addEventListener("message", async ({ data }) => {
      if (data === "throw") setTimeout(() => { throw new Error("boom"); });
      if (data === "overwrite") {
        const { memory } = await init();
        new Uint8Array(memory.buffer).fill(0xee);
      }
    });`;
  const out = {};
  for (const how of ["throw", "overwrite"]) {
    const worker = workerWith(code);
    const model = await Doppler.load(tiny, { dtype: "f32", worker });
    const generation = model.generate(text, endless);
    for await (const part of generation) {
      worker.postMessage(how);
      break;
    }
    const pending = [failure(model.generate(text, endless).done), failure(model.session())];
    await pending[0];
    out[how] = { pending: await pending[0], later: await failure(model.generate(text).done), dead: model.dead?.kind ?? null };
  }
  const absent = new Worker("/web/nowhere.js", { type: "module" });
  return { ...out, absent: await failure(Doppler.load(tiny, { worker: absent })) };
}

/** The README's lines, as they stand. */
export async function readme() {
  const before = document.body.innerText.length;
  await import("/readme.js");
  return document.body.innerText.slice(before);
}
