// Reports of the engine, which leaves out the style and the scripts: the package has them.
import { scripts, style } from "./drawn.js";

/** A report as one file that needs nothing else. */
export function whole(html) {
  // Texts in it have no `<`, so these places are the engine's.
  return html
    ?.replace("<style data-drawn></style>", () => `<style data-drawn>${style}</style>`)
    .replace(/<script type="module" data-drawn="([a-z ]+)"><\/script>/, (_, names) => `<script type="module" data-drawn="${names}">${scripts[names]}</script>`);
}
