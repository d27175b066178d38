// Reads dumps: safetensors files with rows of f32 under the names of values. Only what the page shows of them.

/** The header of a dump: entries by key, and the place of the first value. */
function header(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const length = bytes.length >= 8 ? Number(view.getBigUint64(0, true)) : NaN;
  if (!(length > 0 && 8 + length <= bytes.length)) throw new Error("this is no safetensors file: its header is longer than the file");
  return { entries: JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length))), start: 8 + length };
}

/**
 * The value `key`: `{ shape, row(i) }`, rows as `Float32Array`s. Scores have shape [heads, tokens, positions] and rows
 * of positions; null where the dump has no such value.
 */
export function value(bytes, key) {
  const { entries, start } = header(bytes);
  const entry = entries[key];
  if (!entry) return null;
  if (entry.dtype !== "F32" && entry.dtype !== "I32") throw new Error(`${key}: expected F32 or I32, found ${entry.dtype}`);
  const [from, to] = entry.data_offsets;
  const copy = bytes.slice(start + from, start + to);
  const all = entry.dtype === "F32" ? new Float32Array(copy.buffer) : new Int32Array(copy.buffer);
  const width = entry.shape.at(-1) ?? 1;
  return { shape: entry.shape, row: (i) => all.subarray(i * width, (i + 1) * width) };
}

/** The elements of a row with the largest magnitudes, what is no number first: `{ dim, value }`. */
export function largest(row, count) {
  const size = (x) => (Number.isNaN(x) ? Infinity : Math.abs(x));
  const all = Array.from(row, (value, dim) => ({ dim, value }));
  return all.sort((a, b) => size(b.value) - size(a.value) || a.dim - b.dim).slice(0, count);
}
