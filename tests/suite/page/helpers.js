// What the page's tests do and look at, as functions of the page; `page.rs` evaluates this once per visit.
void Object.assign(globalThis, {
  text: (id) => document.getElementById(id).innerText,
  press: (id) => document.getElementById(id).click(),
  loaded: () => Boolean(doppler.state.model) && !document.getElementById("send").disabled,
  ask(text) {
    document.getElementById("ask").value = text;
    document.getElementById("ask-form").requestSubmit();
  },
  /** So many answers are there, and none is under way. */
  answered: (count) =>
    !doppler.state.busy && document.querySelectorAll(".turn .given").length === count && !document.querySelector(".turn.open"),
  /** Presses an action of a turn in the log. */
  act(turn, name) {
    [...document.querySelectorAll(".turn")[turn].querySelectorAll(".acts button")].find((b) => b.textContent === name).click();
  },
  /** Chooses an option. */
  choose(select, value) {
    select.value = value;
    select.dispatchEvent(new Event("change"));
  },
  /** A key on an element. */
  keyOn(selector, key) {
    const target = document.querySelector(selector);
    target.focus();
    target.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  },
  /** Keeps what the page saves as `savedBlob`, in place of a download. */
  catchSaves() {
    URL.createObjectURL = (blob) => ((globalThis.savedBlob = blob), "blob:nothing");
    HTMLAnchorElement.prototype.click = () => {};
  },
  /** What becomes of a text that is shown as Markdown. */
  async shown(text) {
    const { markdown } = await import("./markdown.js");
    const box = document.createElement("div");
    box.append(...markdown(text));
    const all = [...box.querySelectorAll("*")];
    const unique = (list) => [...new Set(list)];
    return { tags: unique(all.map((e) => e.tagName)), attributes: unique(all.flatMap((e) => e.getAttributeNames())), links: all.filter((e) => e.href).map((e) => e.getAttribute("href")), text: box.textContent };
  },
  /** Other values for keys of the config that is being edited. */
  changeConfig(change) {
    const area = document.getElementById("config-text");
    area.value = JSON.stringify({ ...JSON.parse(area.value), ...change });
    area.dispatchEvent(new Event("input"));
  },
  /** What the map's cells say, by the name of the value. */
  cells() {
    const labels = [...document.querySelectorAll("#heat td.cell, #outside td.cell")].map((td) => td.getAttribute("aria-label"));
    return Object.fromEntries(labels.map((label) => label.split(": ")));
  },
  /** Moves to the second cell by keys and opens it; its name, and what the pane says. */
  async openByKeys() {
    const key = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
    document.querySelector("#heat td[tabindex='0']").focus();
    key("Home");
    key("ArrowRight");
    key("ArrowDown");
    const name = document.activeElement.getAttribute("aria-label").split(": ")[0];
    key("Enter");
    await new Promise((resolve) => setTimeout(resolve, 300));
    const rows = [...document.querySelectorAll("#pane-stage dl.stats > div")];
    return { name, stats: Object.fromEntries(rows.map((row) => [row.children[0].textContent, row.children[1].textContent])) };
  },
  /** Ratios of luminances of every ink on what it stands on, by WCAG's formula. */
  contrasts() {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const probe = document.body.appendChild(document.createElement("i"));
    const rgb = (name) => {
      probe.style.color = `var(--${name})`;
      canvas.fillStyle = getComputedStyle(probe).color;
      canvas.fillRect(0, 0, 1, 1);
      return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const luminance = (name) => {
      const [r, g, b] = rgb(name).map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const backs = { ink: ["back", "card", "mid", "low", "high"], soft: ["back", "card", "mid"], mark: ["back", "card"], bad: ["back", "card"], good: ["back", "card"], "on-mark": ["mark"], "on-odd": ["odd"] };
    const pairs = Object.entries(backs).flatMap(([ink, list]) => list.map((back) => ({ ink, back })));
    const ratio = ({ ink, back }) => {
      const [a, b] = [luminance(ink), luminance(back)].sort((x, y) => y - x);
      return (a + 0.05) / (b + 0.05);
    };
    const out = pairs.map((pair) => ({ ...pair, ratio: ratio(pair) }));
    probe.remove();
    return out;
  },
  /** What is wider than the screen. */
  wide: () =>
    [...document.querySelectorAll("body *")]
      .filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".wide, .hidden"))
      .map((e) => e.outerHTML.slice(0, 100)),
});
