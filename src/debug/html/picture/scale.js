// How a size becomes a colour: the levels of the heat map, from -1 (blue, smaller) over 0 to 1 (orange, larger), and
// the words of the legend. Like is compared with like, as the engine's rules for anomalies do.
import { num } from "./dom.js";
import { keyOf } from "./names.js";

/** Factors at which a colour is full. */
const AGAINST_LAYERS = 4;
const AGAINST_BEFORE = 2;

const log2 = (x) => (Number.isFinite(x) && x > 0 ? Math.log2(x) : null);

export const median = (list) => {
  const sorted = [...list].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
};

/**
 * A function from a value's place to its level, for one step of a run. `measure`: rms, maxAbs, mean, odd, change;
 * `against`: layers, all.
 */
export function levels(run, step, measure, against) {
  const cells = run.steps.get(step) ?? new Map();
  if (measure === "odd") return (at) => (odd(cells.get(keyOf(at))) ? 1 : 0);
  if (measure === "mean") {
    return (at) => {
      const cell = cells.get(keyOf(at));
      const [mean, rms] = [num(cell?.mean), num(cell?.rms)];
      return rms > 0 && Number.isFinite(mean) ? mean / rms : 0;
    };
  }
  if (measure === "change") {
    const before = run.steps.get(step - 1) ?? new Map();
    return (at) => {
      const [now, then] = [log2(num(cells.get(keyOf(at))?.rms)), log2(num(before.get(keyOf(at))?.rms))];
      return now === null || then === null ? 0 : (now - then) / Math.log2(AGAINST_BEFORE);
    };
  }
  const size = (cell) => log2(num(cell?.[measure]));
  const sizes = (list) => list.map(size).filter((x) => x !== null);
  if (against === "all") {
    const all = sizes([...cells.values()]);
    const [low, high] = [Math.min(...all), Math.max(...all)];
    return (at) => {
      const x = size(cells.get(keyOf(at)));
      return x === null || high <= low ? 0 : (2 * (x - low)) / (high - low) - 1;
    };
  }
  const middles = new Map();
  for (const cell of cells.values()) {
    if (cell.layer !== null && !middles.has(cell.stage)) {
      const same = sizes([...cells.values()].filter((other) => other.stage === cell.stage));
      if (same.length) middles.set(cell.stage, median(same));
    }
  }
  return (at) => {
    const cell = cells.get(keyOf(at));
    // Nothing but zeros is as small as can be.
    if (cell && num(cell.maxAbs) === 0) return -1;
    const x = size(cell);
    const middle = middles.get(at.stage);
    return x === null || middle === undefined ? 0 : (x - middle) / Math.log2(AGAINST_LAYERS);
  };
}

/** Whether a value has elements that are no finite numbers. */
export const odd = (cell) => cell !== undefined && cell.nan + cell.inf > 0;

/** The ends and the middle of the colours, in words, and what they mean. */
export function legend(measure, against) {
  if (measure === "odd") return { low: "", middle: "none", high: "NaN or Inf", about: "Values with elements that are NaN or infinite." };
  if (measure === "mean") return { low: "mean = −rms", middle: "0", high: "mean = rms", about: "The mean as a share of the root mean square." };
  const what = measure === "maxAbs" ? "Largest magnitude" : "Root mean square";
  if (measure === "change") {
    return { low: `÷${AGAINST_BEFORE}`, middle: "same", high: `×${AGAINST_BEFORE}`, about: "Root mean square, against the step before. The prompt has none before it." };
  }
  if (against === "all") return { low: "smallest", middle: "", high: "largest", about: `${what} on a logarithmic scale, over all that is shown.` };
  return {
    low: `÷${AGAINST_LAYERS}`, middle: "median", high: `×${AGAINST_LAYERS}`,
    about: `${what}, against the median of the same stage over all layers of this step. Stages outside layers have none to be compared with.`,
  };
}

/** The values of a model in the order of computation: `stages` as the engine lists them, `layers` layers. */
export function inOrder(stages, layers) {
  const first = stages.findIndex((s) => s.layers);
  if (first < 0) return stages.map((s) => ({ stage: s.name, layer: null }));
  const outside = (list) => list.filter((s) => !s.layers).map((s) => ({ stage: s.name, layer: null }));
  const layered = stages.filter((s) => s.layers);
  const inside = Array.from({ length: layers }, (_, layer) => layered.filter((s) => s.layers.includes(layer)).map((s) => ({ stage: s.name, layer })));
  return [...outside(stages.slice(0, first)), ...inside.flat(), ...outside(stages.slice(first))];
}

/** The first value of a run with elements that are no finite numbers, `{ step, at }`; null where all are finite. */
export function firstOdd(run, stages, layers) {
  for (const step of [...run.steps.keys()].sort((a, b) => a - b)) {
    const at = inOrder(stages, layers).find((place) => odd(run.cell(step, place)));
    if (at) return { step, at };
  }
  return null;
}
