// The tabs below the map: one pane at a time, arrow keys between them.
import { $ } from "./dom.js";

const tabs = () => [...$("tabs").querySelectorAll("[role=tab]")];

export function setUp() {
  $("tabs").addEventListener("click", (event) => {
    const tab = event.target.closest("[role=tab]");
    if (tab) showTab(tab.id.slice("tab-".length));
  });
  $("tabs").addEventListener("keydown", (event) => {
    const all = tabs();
    const at = all.indexOf(document.activeElement);
    const next = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: all.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    const tab = all[(next + all.length) % all.length];
    showTab(tab.id.slice("tab-".length));
    tab.focus();
  });
}

/** Shows the pane `name`: logits, attention, lens, probes, compare, lines, model. */
export function showTab(name) {
  for (const tab of tabs()) {
    const chosen = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = !chosen;
  }
}
