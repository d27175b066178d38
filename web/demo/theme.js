// Colours: as the system has them, light, or dark. The choice stays in this browser.
import { $ } from "./dom.js";

const CHOICES = [
  { theme: "", name: "as the system" },
  { theme: "light", name: "light" },
  { theme: "dark", name: "dark" },
];
const KEY = "doppler-theme";

export function setUp() {
  let now = 0;
  const show = () => {
    const { theme, name } = CHOICES[now];
    if (theme) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
    $("theme").setAttribute("aria-label", `Colours: ${name}`);
    $("theme").title = `Colours: ${name}`;
  };
  // A browser may refuse storage; then the choice lasts as long as the page.
  try {
    now = Math.max(0, CHOICES.findIndex(({ theme }) => theme === (localStorage.getItem(KEY) ?? "")));
  } catch {}
  show();
  $("theme").addEventListener("click", () => {
    now = (now + 1) % CHOICES.length;
    show();
    try {
      localStorage.setItem(KEY, CHOICES[now].theme);
    } catch {}
  });
}
