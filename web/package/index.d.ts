/** LLM inference on WebGPU: the same engine, the same values and the same lines as `doppler` natively. */

/** What kind of thing went wrong. Kinds of the engine, and `crash`, `closed`, `aborted`, `internal` of this package. */
export type ErrorKind =
  | "config" | "unsupported" | "format" | "weights" | "tokenizer" | "template" | "invalid" | "plan" | "device" | "memory"
  | "io" | "finding" | "crash" | "closed" | "aborted" | "internal";

/** What an error is about: one member, for programs. */
export type ErrorAbout =
  | { key: string }
  | { tensors: { tensor: string; problem: "missing" | "shape" | "type" | "extra"; expected: string | null; found: string | null }[] }
  | { value: { stage: string; layer: number | null } }
  | { file: string }
  | { memory: { needed: number; available: number } };

export class DopplerError extends Error {
  readonly kind: ErrorKind;
  /** A config key, tensors, a value, a file or memory, where the engine knows. */
  readonly about?: ErrorAbout;
  /** Of a generation that ended by a finding: the dump that was asked for. */
  readonly dump?: Uint8Array;
  /** Likewise, the report. */
  readonly report?: string;
}

/** A layer or token: from the start, negative from the end, or the middle one. */
export type Position = number | "mid";

export interface LoadOptions {
  /** Told as weights reach the device: bytes, and where the last of them came from. */
  onProgress?: (progress: { loaded: number; total: number; tensor: string; from: "network" | "cache" | "file" }) => void;
  /** Stops loading; the promise is rejected with the signal's reason. */
  signal?: AbortSignal;
  /** Storage of activations and caches. `auto` (the default): f16 where the adapter computes in it. */
  dtype?: "auto" | "f32" | "f16";
  /** `floor`: use what every WebGPU implementation guarantees, and no more. */
  limits?: "native" | "floor";
  /** Longest sequence in tokens; at most, and by default, the model's own. */
  context?: number;
  /** Tokens of a prompt that are computed in one pass (512). */
  prefillChunk?: number;
  /** Kernels that compute several ops at once (true). */
  fusion?: boolean;
  /** Use subgroups where the adapter has them (true). */
  subgroups?: boolean;
  /** Load although keys of config.json are not understood (false). */
  allowUnknownConfig?: boolean;
  /** Load although the checkpoint has tensors that the model of config.json has no place for (false). */
  allowExtraTensors?: boolean;
  /** Texts in place of single files of a folder, by name: `{ "config.json": "…" }`, to see what another number does. */
  files?: Partial<Record<"config.json" | "generation_config.json" | "tokenizer.json" | "tokenizer_config.json" | "special_tokens_map.json" | "added_tokens.json" | "chat_template.jinja", string>>;
  /** `loader`: a record for every tensor that is loaded. */
  trace?: string | readonly string[];
  /** Told of these records. */
  onRecord?: (record: DebugRecord) => void;
  /**
   * In a worker of this package (true), beside the page (false), or in a worker of yours that runs
   * `@doppler/web/worker.js`. It ends with the model.
   */
  worker?: boolean | Worker;
  /**
   * Keep what is downloaded in the origin's private files, and take from there what the server says has not changed
   * (true). Where that cannot be done, `info.notes` says why.
   */
  cache?: boolean;
  /** The Hub of ids like `org/name` (https://huggingface.co), and a token for models that not everybody may see. */
  hub?: string;
  token?: string;
  /** Bytes that the model may need at most: more is refused, with the forecast, before anything is allocated. */
  memory?: number;
  /**
   * Change values while they are computed, in all sessions: `ffn_out@3-5,token=4=zero`, as `doppler run --set` takes it.
   * Positions count from 0; a page has no files, so `add:`, `from:` and `mean:` are refused.
   */
  set?: string | readonly string[];
  /**
   * Load the model again when its device is lost, or its worker crashes (true): calls that come later wait for that, a
   * session goes on from its last generation that ended. What was under way is rejected, with the kind `device` or
   * `crash`. After three losses in a row, without a generation that ended well in between, the model stays dead. An engine
   * that crashed beside the page, or in a worker of yours, cannot be started again.
   */
  recover?: boolean;
  /** Told of each loss. */
  onDeviceLost?: (loss: DeviceLoss) => void;
}

export interface DeviceLoss {
  kind: "device" | "crash";
  /** The browser's word: `destroyed`, `unknown`; or `crash`. */
  reason: string;
  message: string;
  /** Whether the model is being loaded again. */
  recovering: boolean;
}

/** What a model needs in memory, by purpose. Bytes. */
export interface Forecast {
  rows: { what: string; detail: string; bytes: number }[];
  total: number;
  /** Positions that caches were counted for, and tokens of a step: a session's at first. */
  capacity: number;
  chunk: number;
  /** The table, for people. */
  text: string;
}

export interface CachedModel {
  /** The folder's name, or the Hub id. */
  model: string;
  /** Where it came from: for `Doppler.cache.remove`. */
  source: string;
  used: Date;
  /** Bytes that are stored, checksums included. */
  bytes: number;
  files: { name: string; size: number; cached: number }[];
}

export interface Message {
  /** `system`, `user`, `assistant`, `tool`, or what else the model's template knows. */
  role: string;
  content?: unknown;
  [key: string]: unknown;
}

/** A text to continue as it stands; ids, to which nothing is added; or a conversation, for the model's template. */
export type Prompt = string | readonly number[] | Uint32Array | readonly Message[];

export interface Probe {
  /** Name in `PROBE[id]` lines. */
  id: string;
  stage: string;
  /** Absent: every layer that has the stage. */
  layers?: Position | readonly Position[];
  /** Absent: every token. */
  tokens?: Position | readonly Position[];
  /** Elements of each token's row; absent: its statistics. */
  dims?: readonly number[] | "stats";
}

export interface GenerateOptions {
  /** Tokens at most (512); 0 only reads the prompt. */
  maxTokens?: number;
  /** 0 (the default) takes the most likely token. */
  temperature?: number;
  topK?: number;
  topP?: number;
  minP?: number;
  repeatPenalty?: number;
  /** The same seed gives the same tokens with the same version, device and dtype; others round differently. */
  seed?: number;
  /** Stops it; parts and `done` are rejected with the signal's reason. */
  signal?: AbortSignal;
  /** Mask no id and stop at none. By default so for ids, and not for texts and messages. */
  raw?: boolean;
  /** Hash the logits that tokens are chosen from, for `done.logits`. */
  hash?: boolean;
  /** For the chat template. */
  tools?: readonly unknown[];
  variables?: Record<string, unknown>;
  /** Told as the prompt is read. Tokens. */
  onPrefill?: (progress: { done: number; total: number }) => void;

  /**
   * Categories: embed, attn, ffn, kv, logits, layer, sample; kernels (every dispatch), perf (GPU times by kernel), lens;
   * `all` is all but lens and perf, `-name` takes one out again. Times need a device with timestamps
   * (`info.device.timestamps`); browsers make them coarse, Chrome to 0.1 ms unless its developer features are on.
   */
  trace?: string | readonly string[];
  /** Only these layers, with a LAYER_OUT line for each. */
  traceLayers?: readonly Position[];
  probes?: readonly Probe[];
  /** Look for NaN, explosions, collapses, repetitions; or with other thresholds. */
  anomalies?: boolean | { factor?: number; profileFactor?: number; repetitions?: number };
  /** Told of everything seen, step by step, before the step's token. */
  onRecord?: (record: DebugRecord) => void;
  /** Keep values of every step, for `done.dump`: stages, or `all`. */
  dump?: string | readonly string[] | { stages: string | readonly string[]; layers?: readonly number[] };
  /** Draw a report of the run, as `doppler debug --html` does, for `done.report`. Looks for anomalies too. */
  report?: boolean;
  /** What healthy runs of this model looked like, to judge sizes by: a `done.profile`, or a file of `--record-profile`. */
  profile?: object;
  /** Make such a profile of this run, for `done.profile`. */
  recordProfile?: boolean;
  /** A record of type `sample` for each chosen token, with so many alternatives; category `sample` has 5. */
  candidates?: number;
  /** A runtime config, as `doppler debug --config` takes it; single options win. */
  config?: object;
}

/** Something seen: the JSON twin of a line of `doppler debug`. Numbers that are not finite are texts. */
export interface DebugRecord {
  /** `told`: of the categories loader, kernels and perf, with `category` and `text`. */
  type: "trace" | "layerOut" | "probe" | "sample" | "lens" | "anomaly" | "told";
  /** The line. */
  line: string;
  stage?: string;
  layer?: number | null;
  step?: number;
  [key: string]: unknown;
}

export interface Part {
  /** Text that this token completed; often a word, perhaps nothing. */
  text: string;
  /** The token; null for what was left of the text at the end. */
  id: number | null;
  /** 0 for the first token; n for the one chosen after reading the n-th. */
  step: number | null;
}

export interface Done {
  text: string;
  /** New ids, the one that ended it included. */
  ids: number[];
  /** Ids that were put behind the sequence, or, for messages, in its place. */
  promptIds: number[];
  stop: "maxTokens" | "eos" | "context" | "interrupted";
  tokens: number;
  milliseconds: number;
  /** From the start to the first token. */
  firstTokenMilliseconds: number;
  /** Tokens of the prompt that were read, not those that were known. */
  prefillTokens: number;
  prefillTokensPerSecond: number | null;
  decodeTokensPerSecond: number | null;
  /** XXH64 of the little-endian f32 logits that tokens were chosen from, with `hash`. */
  logits: string | null;
  /** What had to change on the way. */
  notes: string[];
  /** What `anomalies` found. */
  findings: { kind: string; stage: string | null; layer: number | null; step: number; message: string; [key: string]: unknown }[];
  /** Tokens of the sequence now. */
  sequence: number;
  /** A safetensors file, with `dump`. */
  dump?: Uint8Array;
  /** An HTML file that needs nothing else, with `report`. */
  report?: string;
  /** With `recordProfile`, if the run was healthy; a note says if not. */
  profile?: object;
}

/** A generation under way. It begins at once; leaving the loop over its parts ends it. */
export class Generation implements AsyncIterable<Part> {
  readonly done: Promise<Done>;
  stop(): void;
  [Symbol.asyncIterator](): AsyncIterator<Part>;
}

export interface DumpOptions extends Omit<GenerateOptions, "dump"> {
  /** Stages (`info.stages`), or `all` (the default). */
  stages?: string | readonly string[];
  layers?: readonly number[];
}

/** A dump, ours or one of the reference scripts. What is a file is called by its name. */
export type DumpFile = Blob | ArrayBuffer | ArrayBufferView;

/** What is compared; everything by default. */
export interface ComparedValues {
  /** Only these stages. */
  stages?: string | readonly string[];
  /** Only these layers, and what is outside layers. */
  layers?: readonly number[];
  /** Show every value in `text`, not only those that differ. */
  all?: boolean;
  /** Ends it; the promise is rejected with the signal's reason. */
  signal?: AbortSignal;
}

export interface CompareOptions extends ComparedValues {
  /** Give each op the dump's values: shows which op is wrong, not what inherits its error. The dump must have all stages. */
  isolated?: boolean;
  /** Run the dump's prompt only, not what was generated behind it. */
  promptOnly?: boolean;
  /**
   * Where rounding floors come from: measured, by running the CPU oracle in f64 and f32 on the same tokens, or the dump,
   * which brings them or lets them be estimated. By default measured up to 64 MiB of weights: the weights are read again
   * into memory, and each token takes as many multiplications as the model has weights, twice or three times, in one
   * thread. `measured` is refused (kind `memory`) where weights and values have more than 3 GiB. Ops alone (`isolated`)
   * are always measured.
   */
  floor?: "measured" | "dumps";
  /** What to call the dump in the report; by default its file's name. */
  name?: string;
  /** Told as it goes on: `done` of `total` parts of `what`, in words. */
  onProgress?: (progress: { what: string; done: number; total: number }) => void;
}

/** What a comparison found, as `doppler compare` tells it. */
export interface Comparison {
  /** A value is beyond its floor, a stage is missing on one side, or the model has weights that are no numbers. */
  differs: boolean;
  /** The lines of the command. */
  text: string;
  /** A page that needs nothing else: layers by stages, and what each token is off. */
  html: string;
  report: ComparisonReport;
}

/** The JSON of `doppler compare --json`. Numbers that are not finite are the texts `NaN` and `Inf`. */
export interface ComparisonReport {
  a: string;
  b: string;
  mode: "cumulative" | "isolated";
  tokens: number;
  /** How the floors were come by. */
  floor: string;
  /** A value is right within this many floors. */
  allowed: number;
  /** The first value, in the order of computation, that is beyond them. */
  first_divergence: { layer: number | null; stage: string; run: "observed" | "unobserved"; part: string | null; token: number | null; head: number | null; dim: number | null; times_floor: number | string } | null;
  stages: {
    layer: number | null;
    stage: string;
    /** Whether a watched run makes this value, or only one that nobody watches. */
    run: "observed" | "unobserved";
    /** What of an unwatched run it is: `unobserved`, `attention.prompt`, `cache.decode`, `decode`, `choice` … */
    part: string | null;
    diverged: boolean;
    times_floor: number | string;
    relative_l2: number | string;
    floor: number | string;
    estimated_floor: boolean;
    max_abs: number | string;
    cosine: number | string;
    token: number | null;
    head: number | null;
    dim: number | null;
    one_dim: boolean;
    a: number | string | null;
    b: number | string | null;
    rows: number;
    sketch: boolean;
    /** Floors that each token is off, of values that diverge. */
    tokens: (number | string)[] | null;
  }[];
  missing: { stage: string; layers: number[]; side: "A" | "B" }[];
  /** Values of A that B was given in place of its own: what follows from them is judged. */
  injected: string[];
  /** What the verdict covers, in words. */
  covers: string[];
  /** What was left out although nobody asked for that: then the sides do not agree. */
  not_judged: string[];
  notes: string[];
}

export interface Info {
  model: string;
  preset: string;
  layers: number;
  hidden: number;
  vocab: number;
  /** Types of the stored weights, like `bf16`. */
  weights: string;
  weightBytes: number;
  /** What it needs in memory, with one session of 4096 positions at most. */
  memory: Forecast;
  /** Bytes by where they came from, most bytes of files that were in memory at once, bytes of wasm memory. */
  loading: { milliseconds: number; network: number; cache: number; file: number; peak: number; wasm: number };
  /** Whether it can be loaded from the cache the next time. */
  cached: boolean;
  /** What a user may want to know: why it is not cached, that the server was not asked, pieces that were damaged. */
  notes: string[];
  dtype: "f32" | "f16";
  context: number;
  /** Whether there is a tokenizer, and a chat template. */
  text: boolean;
  chat: boolean;
  device: {
    description: string;
    name: string;
    driver: string;
    software: boolean;
    subgroup: number | null;
    f16: boolean;
    timestamps: boolean;
    maxBinding: number;
    maxBuffer: number;
  };
  /** Names of all values that can be traced, probed and dumped. */
  stages: string[];
  /** The same with what they are, and the layers that have them; null for stages outside layers. */
  stageInfo: { name: string; about: string; category: string; layers: number[] | null }[];
  /** Every number that changes the maths, and where it came from. */
  config: { name: string; value: string; source: string }[];
  ignoredKeys: string[];
  /** Weights that are no numbers. */
  nonFinite: { tensor: string; shape: number[]; nan: number; inf: number; first: number }[];
}

export class Model {
  readonly info: Info;
  /** Why the model can no longer be used; null while it can, or will when it has been loaded again. */
  readonly dead: Error | null;
  /** Continues a prompt in a sequence of its own. */
  generate(prompt: Prompt, options?: GenerateOptions): Generation;
  /** Likewise, a conversation (or a user's message) in the model's template. */
  chat(messages: string | readonly Message[], options?: GenerateOptions): Generation;
  /** What a prompt is for this model: the ids that a run of it reads, and their texts (null without a tokenizer). */
  tokens(prompt: Prompt, options?: { tools?: readonly unknown[]; variables?: Record<string, unknown> }): Promise<{ id: number; text: string | null }[]>;
  /** The values of a run, as a safetensors file that `doppler compare` reads. One token is generated by default. */
  dump(prompt: Prompt, options?: DumpOptions): Promise<Uint8Array>;
  /**
   * Runs a dump's tokens on this model and says where the two part: what `doppler compare DUMP -m MODEL` does, the dump as
   * A and this model as B. The oracle that measures floors lets messages in after every few tokens, or after an op.
   */
  compare(dump: DumpFile, options?: CompareOptions): Promise<Comparison>;
  /** A sequence with a cache of its own. `capacity`: tokens to make room for at first; it grows. */
  session(options?: { capacity?: number; raw?: boolean }): Promise<Session>;
  /** Lets go of the device and ends the worker. */
  close(): Promise<void>;
}

export class Session {
  /** Tokens of the sequence so far. */
  readonly length: number;
  /** Continues the sequence; messages replace it, and what they share with it is not read again. */
  generate(prompt: Prompt, options?: Omit<GenerateOptions, "raw">): Generation;
  chat(messages: string | readonly Message[], options?: Omit<GenerateOptions, "raw">): Generation;
  close(): Promise<void>;
}

/**
 * Models in the origin's private files. A model is stored in pieces of 16 MiB with their checksums, so that an interrupted
 * download goes on where it was, and a piece that is cut or changed is fetched again. Files are told apart by their hash,
 * where a Hub says it, else by address and ETag or Last-Modified; a server that gives neither is not cached. A Hub's file
 * that is read as a whole is compared with its SHA-256 once. Models in use are never removed.
 */
export interface Cache {
  /** The models, the one used last first. */
  list(): Promise<CachedModel[]>;
  /** Removes the models called so, by name or source; how many. */
  remove(model: string): Promise<number>;
  clear(): Promise<number>;
  /** Models and their bytes; what the origin uses of its quota; whether the browser promised to keep it. */
  estimate(): Promise<{ models: number; bytes: number; usage: number | null; quota: number | null; persisted: boolean }>;
  /** Asks the browser to keep it, as `load` does once; some ask the user. */
  persist(): Promise<boolean>;
}

/**
 * A folder in Hugging Face's layout or with a manifest, or a GGUF file, by its address; a model of a Hub, `org/name[@revision][:FILE]`, where
 * FILE is a GGUF file or the end of its name (`Q4_K_M`); or the files of an `<input>`, of one model. Of a GGUF model in
 * several files, each names all of them. A folder beside the page whose address looks like an id is written `./folder/name/`.
 */
export type Source = string | URL | Iterable<File> | { files: Iterable<File> };

export const Doppler: {
  load(source: Source, options?: LoadOptions): Promise<Model>;
  /** What a model would need on this machine's device; of its weights only the headers are read. */
  forecast(source: Source, options?: LoadOptions): Promise<Forecast>;
  /** Two dumps, without a model: what `doppler compare A B` does. `names`: what to call them. */
  compare(a: DumpFile, b: DumpFile, options?: ComparedValues & { names?: [string, string]; worker?: boolean }): Promise<Comparison>;
  readonly cache: Cache;
};
