// Attention that a report holds.
import { AttentionMaps, unpacked } from "./attention.js";

const attended = document.getElementById("attention-data");
if (attended) {
  const { layers, tokens } = JSON.parse(attended.textContent);
  const of = (layer) => layers.find((held) => held.layer === layer);
  // The last token may have been chosen and never read.
  const read = tokens.slice(0, Math.max(...layers.map(({ widths }) => widths.length)));
  new AttentionMaps(document.getElementById("attention"), async (layer) => unpacked(of(layer))).show(read, layers.map(({ layer }) => layer));
}
