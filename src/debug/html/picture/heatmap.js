// A grid of coloured cells: rows by columns, one of them reachable by Tab, the others by arrow keys. It knows cells,
// not what they mean; the inspector and the comparison use it.
import { el } from "./dom.js";

const MOVES = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

export class HeatMap {
  #root;
  #label;
  #onOpen;
  #onMove;
  #shape = "";
  #cells = [];
  #table = null;
  #cursor = [0, 0];
  /** The cells as they were last shown: `[row][column]`, null where there is none. */
  #shown = [];

  /**
   * `onOpen(row, column)`: a cell was pressed. `onMove(row, column)`: the cursor or the pointer is on it; the arguments
   * are the rows' and columns' own objects.
   */
  constructor(root, { label, onOpen, onMove = () => {} }) {
    this.#root = root;
    this.#label = label;
    this.#onOpen = onOpen;
    this.#onMove = onMove;
  }

  /**
   * Rows and columns are `{ id, label, about }`. `cell(row, column)` gives null, or `{ level, text, label, odd, mark,
   * first, selected }`: level from -1 to 1 is the colour, `odd` marks what is no number, `mark` a finding, `first` the
   * first of them, which is framed.
   */
  show({ rows, columns, cell, digits = false }) {
    const shape = JSON.stringify([rows.map((r) => r.id), columns.map((c) => c.id)]);
    if (shape !== this.#shape) this.#build(rows, columns, shape);
    this.#rows = rows;
    this.#columns = columns;
    this.#table?.classList.toggle("digits", digits);
    this.#shown = rows.map((row) => columns.map((column) => cell(row, column)));
    this.#shown.forEach((row, r) => row.forEach((shown, c) => paint(this.#cells[r][c], shown)));
    if (!this.#shown[this.#cursor[0]]?.[this.#cursor[1]]) this.#cursor = this.#first();
    this.#rove();
  }
  /** Puts the cursor on a cell, if there is one. */
  focus(rowId, columnId) {
    const at = [this.#rows.findIndex((r) => r.id === rowId), this.#columns.findIndex((c) => c.id === columnId)];
    if (this.#shown[at[0]]?.[at[1]]) this.#go(at);
  }
  clear() {
    this.#root.replaceChildren();
    this.#shape = "";
    this.#shown = [];
  }

  #rows = [];
  #columns = [];

  #build(rows, columns, shape) {
    this.#shape = shape;
    this.#cursor = [0, 0];
    const head = columns.map((c) => el("th", { scope: "col", role: "columnheader", title: c.about }, el("span", { text: c.label })));
    this.#cells = rows.map(() => columns.map(() => el("td", { role: "gridcell", tabindex: "-1" })));
    const body = rows.map((row, r) =>
      el("tr", { role: "row" }, el("th", { scope: "row", role: "rowheader", text: row.label, title: row.about }), ...this.#cells[r]),
    );
    this.#table = el(
      "table",
      { class: "heat", role: "grid", "aria-label": this.#label, "aria-readonly": "true" },
      el("thead", {}, el("tr", { role: "row" }, el("td", { role: "columnheader", class: "corner", text: "layer" }), ...head)),
      el("tbody", {}, ...body),
    );
    const place = (event) => {
      const td = event.target.closest?.("td[role=gridcell]");
      const r = td ? this.#cells.findIndex((row) => row.includes(td)) : -1;
      return r < 0 ? null : [r, this.#cells[r].indexOf(td)];
    };
    this.#table.addEventListener("click", (event) => {
      const at = place(event);
      if (!at || !this.#shown[at[0]][at[1]]) return;
      this.#go(at);
      this.#open(at);
    });
    this.#table.addEventListener("pointerover", (event) => {
      const at = place(event);
      if (at && this.#shown[at[0]][at[1]]) this.#onMove(this.#rows[at[0]], this.#columns[at[1]]);
    });
    this.#table.addEventListener("keydown", (event) => {
      const at = place(event);
      if (at) this.#key(event, at);
    });
    this.#root.replaceChildren(this.#table);
  }

  #key(event, [r, c]) {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      return this.#open([r, c]);
    }
    let next = null;
    if (event.key in MOVES) {
      // Over the places where the model has nothing.
      const [down, right] = MOVES[event.key];
      let at = [r + down, c + right];
      while (this.#shown[at[0]] && at[1] in this.#shown[at[0]] && !this.#shown[at[0]][at[1]]) at = [at[0] + down, at[1] + right];
      next = at;
    } else if (event.key === "Home" || event.key === "End") {
      const rows = event.ctrlKey ? [event.key === "Home" ? 0 : this.#shown.length - 1] : [r];
      const there = this.#shown[rows[0]].map((cell, i) => (cell ? i : -1)).filter((i) => i >= 0);
      next = [rows[0], event.key === "Home" ? there[0] : there.at(-1)];
    }
    if (!next) return;
    event.preventDefault();
    if (this.#shown[next[0]]?.[next[1]]) this.#go(next);
  }

  #open([r, c]) {
    if (this.#shown[r][c]) this.#onOpen(this.#rows[r], this.#columns[c]);
  }
  #go(at) {
    this.#cursor = at;
    this.#rove();
    this.#cells[at[0]][at[1]].focus();
    this.#onMove(this.#rows[at[0]], this.#columns[at[1]]);
  }
  #rove() {
    this.#cells.forEach((row, r) =>
      row.forEach((td, c) => (td.tabIndex = r === this.#cursor[0] && c === this.#cursor[1] ? 0 : -1)),
    );
  }
  #first() {
    for (const [r, row] of this.#shown.entries()) {
      const c = row.findIndex(Boolean);
      if (c >= 0) return [r, c];
    }
    return [0, 0];
  }
}

/** Gives a cell its colour, text and name. */
function paint(td, shown) {
  const state = shown ? `${shown.level?.toFixed(3)} ${shown.text} ${shown.odd} ${shown.mark} ${shown.first} ${shown.selected} ${shown.label}` : "";
  if (td.dataset.state === state) return;
  td.dataset.state = state;
  td.className = shown ? "cell" : "";
  td.textContent = shown?.text ?? "";
  if (!shown) {
    td.setAttribute("aria-label", "none");
    return;
  }
  td.setAttribute("aria-label", shown.label);
  td.title = shown.label;
  td.setAttribute("aria-selected", String(shown.selected ?? false));
  const level = Math.max(-1, Math.min(1, shown.level ?? 0));
  td.classList.toggle("less", level < 0);
  td.classList.toggle("odd", shown.odd ?? false);
  td.classList.toggle("marked", shown.mark ?? false);
  td.classList.toggle("first", shown.first ?? false);
  td.style.setProperty("--level", `${(Math.abs(level) * 100).toFixed(1)}%`);
}
