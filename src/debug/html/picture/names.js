// Names of values.

/** The name of a value in dumps: `layer.3.ffn_out`, `embed_out`. */
export const keyOf = ({ stage, layer }) => (layer === null || layer === undefined ? stage : `layer.${layer}.${stage}`);

/** `L3 ffn_out`. */
export const nameOf = ({ stage, layer }) => (layer === null || layer === undefined ? stage : `L${layer} ${stage}`);

/** The value of a name in dumps. */
export function placeOf(key) {
  const found = /^layer\.(\d+)\.(.*)$/.exec(key);
  return found ? { stage: found[2], layer: Number(found[1]) } : { stage: key, layer: null };
}
