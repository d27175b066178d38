/** LLM inference on WebGPU: the same engine, the same values and the same lines as `doppler` natively. */

/** What kind of thing went wrong. Kinds of the engine, and `crash`, `closed`, `aborted`, `internal` of this package. */
export type ErrorKind =
  | "config" | "unsupported" | "format" | "weights" | "tokenizer" | "template" | "invalid" | "plan" | "device" | "memory"
  | "io" | "finding" | "crash" | "closed" | "aborted" | "internal";

export class DopplerError extends Error {
  readonly kind: ErrorKind;
  /** Of a generation that ended by a finding: the dump that was asked for. */
  readonly dump?: Uint8Array;
  /** Likewise, the report. */
  readonly report?: string;
}

/** A layer or token: from the start, negative from the end, or the middle one. */
export type Position = number | "mid";

export interface LoadOptions {
  /** Told as weights reach the device. Bytes. */
  onProgress?: (progress: { loaded: number; total: number; tensor: string }) => void;
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
  /** `loader`: a record for every tensor that is loaded. */
  trace?: string | readonly string[];
  /** Told of these records. */
  onRecord?: (record: DebugRecord) => void;
  /**
   * In a worker of this package (true), beside the page (false), or in a worker of yours that runs
   * `@doppler/web/worker.js`. It ends with the model.
   */
  worker?: boolean | Worker;
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
  first_divergence: { layer: number | null; stage: string; token: number | null; head: number | null; dim: number | null; times_floor: number | string } | null;
  stages: {
    layer: number | null;
    stage: string;
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
  /** Every number that changes the maths, and where it came from. */
  config: { name: string; value: string; source: string }[];
  ignoredKeys: string[];
  /** Weights that are no numbers. */
  nonFinite: { tensor: string; shape: number[]; nan: number; inf: number; first: number }[];
}

export class Model {
  readonly info: Info;
  /** Why the model can no longer be used; null while it can. */
  readonly dead: Error | null;
  /** Continues a prompt in a sequence of its own. */
  generate(prompt: Prompt, options?: GenerateOptions): Generation;
  /** Likewise, a conversation (or a user's message) in the model's template. */
  chat(messages: string | readonly Message[], options?: GenerateOptions): Generation;
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

export const Doppler: {
  /** Loads a folder in Hugging Face's layout, from its address or from the files of an `<input>`. */
  load(source: string | URL | Iterable<File> | { files: Iterable<File> }, options?: LoadOptions): Promise<Model>;
  /** Two dumps, without a model: what `doppler compare A B` does. `names`: what to call them. */
  compare(a: DumpFile, b: DumpFile, options?: ComparedValues & { names?: [string, string]; worker?: boolean }): Promise<Comparison>;
};
