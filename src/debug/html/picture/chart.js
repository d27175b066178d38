// Small pictures of numbers: a line over layers or steps, all elements of a row, bars. Each has its words.
import { num, short, svg } from "./dom.js";

const [WIDTH, HEIGHT, EDGE] = [320, 64, 6];

/**
 * A line through `points`, `{ x, y, name }` each; a gap where y is no number. `selected` is the x that is marked,
 * `onpick(x)` hears which was pressed. Sizes stand on a logarithmic scale where all are positive.
 */
export function lineChart(points, { label, selected, onpick } = {}) {
  const good = points.filter((p) => Number.isFinite(num(p.y)));
  const logarithmic = good.length > 0 && good.every((p) => num(p.y) > 0);
  const height = (y) => (logarithmic ? Math.log10(num(y)) : num(y));
  const [low, high] = [Math.min(...good.map((p) => height(p.y))), Math.max(...good.map((p) => height(p.y)))];
  const last = Math.max(1, points.length - 1);
  const place = (p, i) => {
    const share = high > low ? (height(p.y) - low) / (high - low) : 0.5;
    return [EDGE + (i / last) * (WIDTH - 2 * EDGE), HEIGHT - EDGE - share * (HEIGHT - 2 * EDGE)];
  };
  const paths = [];
  let open = [];
  points.forEach((p, i) => {
    if (Number.isFinite(num(p.y))) open.push(place(p, i).map((x) => x.toFixed(1)).join(","));
    else open = (paths.push(open), []);
  });
  paths.push(open);
  const range = good.length ? `from ${short(Math.min(...good.map((p) => num(p.y))))} to ${short(Math.max(...good.map((p) => num(p.y))))}` : "no numbers";
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${label}: ${range}`, class: "line-chart" });
  for (const list of paths) if (list.length > 1) picture.append(svg("polyline", { points: list.join(" ") }));
  points.forEach((p, i) => {
    const title = svg("title", { text: `${p.name}: ${short(p.y)}` });
    if (!Number.isFinite(num(p.y))) {
      const [x] = place({ y: 1 }, i);
      picture.append(svg("path", { d: `M${x - 3},${EDGE}l6,6m0,-6l-6,6`, class: "odd" }, title));
      return;
    }
    const [x, y] = place(p, i);
    const shown = points.length <= 80 || p.x === selected;
    picture.append(svg("circle", { cx: x.toFixed(1), cy: y.toFixed(1), r: p.x === selected ? 4 : shown ? 2 : 0.5, class: p.x === selected ? "here" : null }, title));
    if (!onpick) return;
    const width = WIDTH / last;
    const area = { x: x - width / 2, y: 0, width, height: HEIGHT, class: "pick", onclick: () => onpick(p.x) };
    picture.append(svg("rect", area, svg("title", { text: `${p.name}: ${short(p.y)}` })));
  });
  return picture;
}

/** All elements of a row from left to right; of many, the extremes of each part. */
export function rowChart(values, label) {
  const parts = Math.min(values.length, WIDTH);
  const bars = [];
  let most = 0;
  for (const x of values) if (Number.isFinite(x)) most = Math.max(most, Math.abs(x));
  const y = (x) => HEIGHT / 2 - (most ? x / most : 0) * (HEIGHT / 2 - 2);
  for (let part = 0; part < parts; part++) {
    let [low, high] = [0, 0];
    for (let i = Math.floor((part * values.length) / parts); i < ((part + 1) * values.length) / parts; i++) {
      if (values[i] < low) low = values[i];
      if (values[i] > high) high = values[i];
    }
    const x = ((part + 0.5) * WIDTH) / parts;
    bars.push(`M${x.toFixed(1)},${y(high).toFixed(1)}V${(y(low) + 0.3).toFixed(1)}`);
  }
  return svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${label}: ${values.length} elements up to ±${short(most)}`, class: "row-chart" },
    svg("path", { d: `M0,${HEIGHT / 2}H${WIDTH}`, class: "axis" }),
    svg("path", { d: bars.join(""), "stroke-width": Math.max(0.6, WIDTH / parts - 0.4) }),
  );
}

/** A bar for a share from 0 to 1, decorative: the number stands beside it. */
export function barChart(share) {
  const full = Math.max(0, Math.min(1, share)) * 100;
  return svg("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true", class: "bar-chart" }, svg("rect", { width: full.toFixed(1), height: 10 }));
}
