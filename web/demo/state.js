// What the page knows, in one place: the model, the run that is looked at, what is selected in it. Parts of the page
// change it by the functions here and hear of changes by `on`.
//
// Events: `model` (another one, or none), `busy` (a generation began or ended), `run` (another run), `data` (the run
// has more), `select` (another step, token or cell), `probes`.

const bus = new EventTarget();

export const state = {
  /** The loaded model; null before. */
  model: null,
  /** How it was chosen: `{ name, title, demo, edited }`, `name` as the command line takes it, `title` for people. */
  origin: null,
  /** A generation is under way. */
  busy: false,
  /** The run that is looked at (`run.js`); null before the first. */
  run: null,
  /** The step shown; `following`: always the newest. */
  step: 0,
  following: true,
  /** Position of the token whose row is shown. */
  position: 0,
  /** The value looked at: `{ stage, layer }`. */
  at: null,
  /** Probes of the next run, as `generate` takes them. */
  probes: [],
  /** Probes of the model before, of stages that this one lacks. */
  lost: [],
};

export const on = (names, listen) => names.split(" ").forEach((name) => bus.addEventListener(name, () => listen()));

let waiting = new Set();
/** Tells of a change, once per frame. */
export function changed(name) {
  if (!waiting.size) schedule(flush);
  waiting.add(name);
}

/** Frames do not come where nobody looks. */
const schedule = (work) => (document.visibilityState === "visible" ? requestAnimationFrame(work) : setTimeout(work, 30));

function flush() {
  const names = waiting;
  waiting = new Set();
  for (const name of names) bus.dispatchEvent(new Event(name));
}

export function setModel(model, origin) {
  // Probes of what another model has too stay.
  const known = model?.info.stages ?? state.probes.map((probe) => probe.stage);
  const [probes, lost] = [true, false].map((kept) => state.probes.filter((probe) => known.includes(probe.stage) === kept));
  Object.assign(state, { model, origin, run: null, step: 0, following: true, at: null, probes, lost });
  for (const name of ["model", "run", "data", "select", "probes"]) changed(name);
}

export function setBusy(busy) {
  state.busy = busy;
  changed("busy");
}

export function setRun(run) {
  Object.assign(state, { run, step: 0, following: true, position: 0 });
  for (const name of ["run", "data", "select"]) changed(name);
}

/** The run has more; the newest step is shown unless another was chosen. */
export function grown(run) {
  if (run !== state.run) return;
  if (state.following) {
    state.step = run.lastStep();
    state.position = run.positionOf(state.step);
  }
  changed("data");
}

/** Shows the step that chose the token at `position`, or that read it, for the prompt's. */
export function selectToken(position) {
  const { run } = state;
  if (!run) return;
  const step = Math.max(0, Math.min(position - run.promptEnd, run.lastStep()));
  state.step = step;
  state.position = position < run.promptEnd ? position : run.positionOf(step);
  state.following = step === run.lastStep() && position >= run.promptEnd;
  changed("select");
}

export function selectCell(at) {
  state.at = at;
  changed("select");
}

export function setProbes(probes) {
  state.probes = probes;
  changed("probes");
}
