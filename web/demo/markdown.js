// A small part of Markdown as elements: headings, lists, quotes, code, emphasis, links. What a model writes goes in as text
// only; no HTML of its own comes of it, and links lead to http and https alone.
import { el } from "./dom.js";

/** Quotes and lists in each other, at most. */
const DEEPEST = 12;

/** The elements of a text. */
export function markdown(text, depth = 0) {
  const lines = text.split("\n");
  const out = [];
  for (let i = 0; i < lines.length; ) {
    const fence = /^\s{0,3}(`{3,}|~{3,})\s*([\w+-]*)/.exec(lines[i]);
    const heading = /^(#{1,6})\s+(.*)$/.exec(lines[i]);
    if (!lines[i].trim()) i++;
    else if (fence) {
      const code = [];
      for (i++; i < lines.length && !lines[i].trim().startsWith(fence[1]); i++) code.push(lines[i]);
      // The closing line, if it has come already.
      i++;
      out.push(el("pre", { tabindex: "0", "aria-label": fence[2] ? `Code, ${fence[2]}` : "Code" }, el("code", { text: code.join("\n") })));
    } else if (heading) {
      // Below the page's own headings.
      out.push(el(`h${Math.min(6, heading[1].length + 3)}`, {}, ...inline(heading[2].trimEnd().replace(/#+$/, "").trimEnd())));
      i++;
    } else if (/^\s{0,3}([-*_])(\s*\1){2,}\s*$/.test(lines[i])) {
      out.push(el("hr"));
      i++;
    } else if (depth < DEEPEST && /^\s{0,3}>/.test(lines[i])) {
      const quoted = [];
      for (; i < lines.length && /^\s{0,3}>/.test(lines[i]); i++) quoted.push(lines[i].replace(/^\s{0,3}>\s?/, ""));
      out.push(el("blockquote", {}, ...markdown(quoted.join("\n"), depth + 1)));
    } else if (ITEM.test(lines[i])) {
      const [list, next] = listFrom(lines, i);
      out.push(list);
      i = next;
    } else {
      const words = [];
      for (; i < lines.length && lines[i].trim() && !BLOCK.test(lines[i]); i++) words.push(lines[i]);
      // A line that only begins like a block.
      if (!words.length) words.push(lines[i++]);
      out.push(el("p", {}, ...words.flatMap((line, n) => (n ? [el("br"), ...inline(line)] : inline(line)))));
    }
  }
  return out;
}

const ITEM = /^(\s*)(?:([-*+])|(\d{1,9})[.)])\s+(.*)$/;
const BLOCK = /^\s{0,3}(?:`{3,}|~{3,}|#{1,6}\s|>|[-*+]\s|\d{1,9}[.)]\s)/;

/** A list that begins at line `i`, and the line after it. Items that are indented more are lists of their own. */
function listFrom(lines, i, depth = 0) {
  const [, indent, , number] = ITEM.exec(lines[i]);
  const list = el(number === undefined ? "ul" : "ol", { start: number === undefined || number === "1" ? null : number });
  while (i < lines.length) {
    const item = ITEM.exec(lines[i]);
    if (!item || item[1].length < indent.length) break;
    if (item[1].length > indent.length + 1 && list.lastChild && depth < DEEPEST) {
      const [inner, next] = listFrom(lines, i, depth + 1);
      list.lastChild.append(inner);
      i = next;
      continue;
    }
    if ((item[3] === undefined) !== (number === undefined)) break;
    list.append(el("li", {}, ...inline(item[4])));
    i++;
  }
  return [list, i];
}

const INLINE = [
  [/`([^`\n]+)`/, (found) => el("code", { text: found[1] })],
  [/\*\*([^\s*](?:[^*]*[^\s*])?)\*\*/, (found) => el("strong", {}, ...inline(found[1]))],
  [/\*([^\s*](?:[^*]*[^\s*])?)\*/, (found) => el("em", {}, ...inline(found[1]))],
  [/\[([^\][\n]+)\]\((https?:\/\/[^\s()<>"]+)\)/, (found) => el("a", { href: found[2], rel: "noopener noreferrer nofollow", target: "_blank", text: found[1] })],
];

/** Text and elements of a line. */
function inline(text) {
  const out = [];
  for (;;) {
    let first = null;
    for (const [pattern, make] of INLINE) {
      const found = pattern.exec(text);
      if (found && (first === null || found.index < first.found.index)) first = { found, make };
    }
    if (!first) return text ? [...out, text] : out;
    const { found, make } = first;
    if (found.index) out.push(text.slice(0, found.index));
    out.push(make(found));
    text = text.slice(found.index + found[0].length);
  }
}
