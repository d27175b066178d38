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
  };
  await model.close();
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
