// The own part of a comparison's report: its map from the JSON that it holds, and addresses like `#at-layer.3.ffn_out`.
import { compareMap } from "./comparemap.js";
import { placeOf } from "./names.js";

const compared = JSON.parse(document.getElementById("compare-data").textContent);
const box = document.getElementById("compare-map");
const drawn = compareMap(box, compared.report, compared.order);
const follow = () => {
  const found = /^#at-([\w.]+)$/.exec(location.hash);
  if (!found) return;
  box.scrollIntoView({ block: "start" });
  drawn.focus(placeOf(found[1]));
};
addEventListener("hashchange", follow);
follow();
