// The heat map's cells: statistics of the one that is pressed, and another step's numbers.
(() => {
  const data = document.getElementById("heat-data");
  const cell = document.getElementById("cell");
  if (!data || !cell) return;
  const { names, steps } = JSON.parse(data.textContent);
  const select = document.getElementById("step");
  const buttons = [...document.querySelectorAll("table.heat button")];
  const step = () => steps[select ? select.selectedIndex : 0];
  const show = (button) => {
    const values = step().cells[button.dataset.cell];
    const name = button.dataset.name;
    cell.textContent = values ? name + " · " + names.map((n, i) => n + " " + (values[i] ?? "–")).join(" · ") : name + " · not seen in this step";
  };
  buttons.forEach((button) => button.addEventListener("click", () => show(button)));
  if (!select) return;
  const short = (x) => (typeof x === "number" ? Number(x.toPrecision(3)).toString() : String(x));
  const shade = (x, range) => {
    if (typeof x !== "number" || x <= 0) return 0;
    const [low, high] = range;
    return high > low ? Math.min(1, Math.max(0, (Math.log10(x) - low) / (high - low))) : 0.5;
  };
  select.addEventListener("change", () => {
    const { cells, ranges } = step();
    for (const button of buttons) {
      const values = cells[button.dataset.cell];
      const [max, rms] = values ?? ["–", "–"];
      button.querySelector(".max").textContent = short(max);
      button.querySelector(".rms").textContent = short(rms);
      button.style.setProperty("--m", shade(max, ranges[0]));
      button.style.setProperty("--r", shade(rms, ranges[1]));
      button.classList.toggle("odd", !!values && typeof max !== "number");
    }
    cell.textContent = "";
  });
})();
