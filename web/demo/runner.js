// Generations of the page: one at a time, watched while the inspector is open, and the same run again for reports,
// dumps and the lens.
import { Run } from "./run.js";
import { grown, setBusy, setRun, state } from "./state.js";

/** What is watched, as categories of a trace; null while the inspector is folded. `app.js` says. */
let watching = () => null;
export const watchWith = (ask) => (watching = ask);

/** Alternatives of each chosen token. */
const CANDIDATES = 10;

let controller = null;
/** Ends the generation that is under way; what it has stays. */
export const stop = () => controller?.abort();

/**
 * Generates, and tells `onPart` of the text. `input`: as for `Model.generate`. `prompt`: how the command line would
 * say it, or null. A conversation that nobody watches goes on in `session`, which has read its beginning already.
 * What `done` gave; after a stop, what there is.
 */
export async function perform(input, options, { prompt = null, onPart = () => {}, session = null } = {}) {
  const { model } = state;
  const categories = watching();
  let run = null;
  let generation = null;
  controller = new AbortController();
  const { signal } = controller;
  setBusy(true);
  try {
    if (categories) {
      run = new Run({ tokens: await model.tokens(input), options, prompt });
      setRun(run);
      const onRecord = (record) => {
        run.take(record);
        grown(run);
      };
      const seeing = { trace: categories, candidates: CANDIDATES, anomalies: true, hash: true, onRecord };
      if (state.probes.length) seeing.probes = state.probes;
      generation = model.generate(input, { raw: false, ...options, ...seeing });
    } else {
      generation = (session ?? model).generate(input, options);
    }
    signal.addEventListener("abort", () => generation.stop());
    if (signal.aborted) generation.stop();
    for await (const part of generation) {
      run?.add(part);
      onPart(part);
      if (run) grown(run);
    }
    const done = await generation.done;
    if (run) run.done = done;
    return done;
  } catch (error) {
    if (run) run.error = error;
    throw error;
  } finally {
    controller = null;
    setBusy(false);
    if (run) grown(run);
  }
}

/** The run that is looked at once more, with what is watched and probed now. */
export function again() {
  const { run } = state;
  return perform(run.promptIds, run.options, { prompt: run.prompt });
}

/** The same tokens once more, out of sight, with further options: a report, a dump, the lens. */
export function repeat(run, options) {
  const maxTokens = Math.max(1, run.generated);
  return state.model.generate(run.promptIds, { raw: false, ...run.options, maxTokens, ...options }).done;
}
