// The conversation: what was asked, the answer as it comes, how fast. Or a text that the model continues.
import * as conversations from "./conversations.js";
import { $, el, many, told } from "./dom.js";
import { markdown } from "./markdown.js";
import { perform, stop } from "./runner.js";
import { on, state } from "./state.js";

/** Things to try with the built-in model, by mode. */
const IDEAS = {
  chat: ["What is 37 + 48?", "Tom has a red ball. Ann has a blue kite. Who has the kite?", "What color is a carrot?"],
  text: ["The color of the sky is", "Once upon a time", "The opposite of hot is"],
};

let talk = conversations.fresh();
let session = null;

export function setUp() {
  $("ask-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!state.busy) ask($("ask").value);
  });
  $("ask").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("ask-form").requestSubmit();
  });
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && state.busy && !event.isComposing && !document.querySelector("dialog[open]")) stop();
  });
  $("stop").addEventListener("click", stop);
  $("new").addEventListener("click", fresh);
  $("mode").addEventListener("change", () => (fresh(), drawIdeas()));
  $("system").addEventListener("change", () => talk.messages.length && ($("rates").textContent = keep() ?? ""));
  on("busy", drawBusy);
  on("model", newModel);
  newModel();
  drawKept();
}

/** `chat` or `text`. */
const mode = () => document.querySelector("input[name=mode]:checked").value;

function newModel() {
  const info = state.model?.info;
  const canChat = Boolean(info?.chat);
  const [chat, text] = document.querySelectorAll("input[name=mode]");
  chat.disabled = Boolean(info) && !canChat;
  if (chat.disabled) text.checked = true;
  $("ask").placeholder = info && !info.text ? "Ids, like 2, 10, 476: this model has no tokenizer" : mode() === "chat" ? "Ask something" : "A text to continue";
  fresh();
  drawIdeas();
  drawBusy();
}

/** Begins anew. What was said before stays kept. */
function fresh() {
  show({ ...conversations.fresh(), system: $("system").value });
}

/** Shows a conversation, to go on with it. */
function show(conversation) {
  stop();
  talk = conversation;
  session?.close().catch(() => {});
  session = null;
  $("system").value = talk.system;
  $("log").replaceChildren();
  $("rates").textContent = "";
  $("ask").placeholder = mode() === "chat" ? "Ask something" : "A text to continue";
  talk.messages.forEach((message, i) => say(message.role, message.content, { at: i, by: message.model }));
  drawKept();
}

/** Keeps a conversation, by default the one that is shown, as it is now; why that cannot be, or null. */
function keep(one = talk, system = $("system").value) {
  const first = one.messages.find(({ role }) => role === "user")?.content ?? "";
  Object.assign(one, { title: first.replace(/\s+/g, " ").slice(0, 60), system, at: Date.now() });
  const problem = conversations.keep(one);
  drawKept();
  return problem;
}

/** The list of conversations. */
function drawKept() {
  const all = conversations.list();
  $("talks").hidden = !all.length;
  $("talks-count").textContent = `Conversations (${all.length})`;
  const item = (one) => {
    const open = () => {
      const chat = document.querySelector("input[name=mode][value=chat]");
      if (!chat.disabled) chat.checked = true;
      show(one);
      drawIdeas();
    };
    const title = one.title || "without a title";
    return el("li", { class: one.id === talk.id ? "here" : null },
      el("button", { type: "button", class: "link", text: title, title: new Date(one.at).toLocaleString(), "aria-current": one.id === talk.id ? "true" : null, onclick: open }), " ",
      el("button", { type: "button", class: "link", text: "remove", "aria-label": `Remove the conversation ${title}`, onclick: () => (conversations.remove(one.id), drawKept()) }));
  };
  const clear = el("button", { type: "button", class: "link", text: "Remove all", onclick: () => (conversations.removeAll(), drawKept()) });
  $("talks-list").replaceChildren(el("ul", {}, ...all.map(item)), el("p", { class: "soft" }, "They are kept in this browser alone. ", clear));
}

function drawIdeas() {
  const list = state.origin?.demo ? IDEAS[mode()] : [];
  const idea = (text) => el("button", { type: "button", class: "idea", text, onclick: () => state.model && !state.busy && ask(text) });
  $("ideas").replaceChildren(...list.map(idea));
}

function drawBusy() {
  $("send").hidden = state.busy;
  $("stop").hidden = !state.busy;
  $("send").disabled = !state.model;
}

/** What the sampling fields say, as `generate` takes it. Sampling gets a seed, so that it can be repeated. */
function sampling() {
  const options = {};
  for (const name of ["maxTokens", "temperature", "topK", "topP", "minP", "repeatPenalty", "seed"]) {
    if ($(name).value !== "") options[name] = Number($(name).value);
  }
  if (options.temperature > 0) options.seed ??= Math.floor(Math.random() * 2 ** 31);
  return options;
}

const parsedIds = (text) => (/^[\s\d,[\]]+$/.test(text) ? (text.match(/\d+/g) ?? []).map(Number) : null);

/** Asks `text`, after the first `at` messages of the conversation; what came after them goes. */
async function ask(text, at = talk.messages.length) {
  const { model } = state;
  if (!model || !text.trim() || state.busy) return;
  const options = sampling();
  const chatting = mode() === "chat" && model.info.chat;
  const mine = talk;
  const [before, instructions] = [mine.messages, $("system").value];
  if (chatting) cut(at);
  const turn = chatting ? say("user", text.trim(), { at }) : null;
  const by = nameOfModel();
  const answer = say(chatting ? "assistant" : "text", "", { at: at + 1, by });
  if (!chatting) answer.body.append(el("span", { class: "prompt", text }));
  const given = el(chatting ? "div" : "span", { class: "given" });
  answer.body.append(given);
  answer.element.classList.add("open");
  $("ask").value = "";
  const asked = { role: "user", content: text.trim() };
  const conversation = [...mine.messages, asked].map(({ role, content }) => ({ role, content }));
  const system = chatting ? $("system").value.trim() : "";
  const whole = system ? [{ role: "system", content: system }, ...conversation] : conversation;
  const input = chatting ? whole : model.info.text ? text : parsedIds(text) ?? text;
  const prompt = !chatting ? (model.info.text ? { text } : null) : whole.length === 1 ? { text: text.trim(), chat: true } : null;
  let [said, problem] = ["", null];
  const onPart = (part) => {
    const near = $("log").scrollHeight - $("log").scrollTop - $("log").clientHeight < 80;
    said += model.info.text ? part.text : ` ${part.id ?? ""}`;
    fill(given, said, chatting);
    if (near) $("log").scrollTop = $("log").scrollHeight;
  };
  try {
    if (chatting && $("inspector").hidden) session ??= await model.session();
    const done = await perform(input, options, { prompt, onPart, session: chatting ? session : null });
    fill(given, model.info.text ? done.text : said, chatting);
    answer.text = done.text;
    // Kept also where another conversation was opened meanwhile.
    if (chatting) {
      mine.messages = [...before.slice(0, at), asked, { role: "assistant", content: done.text, model: by }];
      problem = keep(mine, instructions);
    }
    answer.note.textContent = [ending(done), problem].filter(Boolean).join(" · ");
    $("rates").textContent = speed(done);
    $("told").textContent = done.text;
  } catch (error) {
    answer.note.className = "note bad";
    answer.note.textContent = told(error);
    // What could not be answered may be asked again.
    if (!said) $("ask").value = text;
    turn?.element.classList.add("failed");
    if (!said && chatting && before.length > at) {
      // What was cut back is there again.
      mine.messages = before;
      if (talk === mine) {
        show(mine);
        $("rates").textContent = told(error);
      }
    }
  } finally {
    answer.element.classList.remove("open");
    $("log").scrollTop = $("log").scrollHeight;
  }
}

/** The text of an answer. Of a chat, Markdown is shown as such. */
function fill(box, text, chatting) {
  if (chatting) box.replaceChildren(...markdown(text));
  else box.textContent = text;
}

/** Forgets the messages from `at` on, and their turns. */
function cut(at) {
  talk.messages = talk.messages.slice(0, at);
  for (const turn of [...$("log").children]) if (Number(turn.dataset.at) >= at) turn.remove();
}

/** What the model is called. */
const nameOfModel = () => state.origin?.title ?? state.model?.info.model ?? "";

/** A turn in the log: message `at` of the conversation, `by` which model; its parts. */
function say(role, text, { at, by }) {
  const who = role === "user" ? "You" : role === "assistant" ? by || "The model" : `Text, continued by ${by || "the model"}`;
  const body = el("div", { class: "body" });
  const note = el("p", { class: "soft note" });
  const parts = { body, note, text };
  if (role === "user") body.append(text);
  else if (text) body.append(el("div", { class: "given" }, ...markdown(text)));
  const act = (name, label, onclick) => el("button", { type: "button", class: "link", text: name, "aria-label": label, onclick });
  const copy = act("Copy", `Copy what ${who} said`, async (event) => {
    const button = event.target;
    const worked = await navigator.clipboard.writeText(parts.text || body.innerText).then(() => true, () => false);
    button.textContent = worked ? "Copied" : "Not copied: the browser does not allow it";
  });
  const actions = [copy];
  if (role === "user") actions.push(act("Edit", "Edit this message; what follows it goes", () => edit(parts, at)));
  if (role === "assistant") {
    const again = () => state.busy || ask(talk.messages[at - 1]?.content ?? "", at - 1);
    actions.push(act("Regenerate", "Regenerate this answer; what follows it goes", again));
  }
  const name = role === "user" ? null : el("p", { class: "soft who", text: role === "assistant" ? who : by });
  parts.element = el("article", { class: `turn ${role}`, "aria-label": who, data: { at } }, name, body, note, el("p", { class: "acts" }, ...actions));
  $("log").append(parts.element);
  $("log").scrollTop = $("log").scrollHeight;
  return parts;
}

/** Turns message `at` into a field; sending cuts the conversation back to it. */
function edit({ element, body }, at) {
  if (state.busy || element.querySelector("form")) return;
  const field = el("textarea", { rows: 3, "aria-label": "The message" });
  const text = talk.messages[at]?.content ?? body.textContent;
  field.value = text;
  const close = () => (form.remove(), (body.hidden = false));
  const submit = (event) => {
    event.preventDefault();
    if (field.value.trim()) ask(field.value, at);
  };
  const form = el("form", { class: "editing", onsubmit: submit }, field, el("button", { type: "submit", class: "strong", text: "Send" }), el("button", { type: "button", text: "Cancel", onclick: close }));
  field.addEventListener("keydown", (event) => event.key === "Escape" && close());
  body.hidden = true;
  body.after(form);
  field.focus();
}

const STOPS = { maxTokens: "ended at the most tokens that the sampling allows", context: "ended where the model's context ends", interrupted: "stopped", eos: "" };

const ending = ({ stop, findings }) => [STOPS[stop] ?? stop, findings.length ? many(findings.length, "anomaly").replace("anomalys", "anomalies") : ""].filter(Boolean).join(" · ");

function speed({ prefillTokens, prefillTokensPerSecond, tokens, decodeTokensPerSecond, milliseconds }) {
  const rate = (x) => (x === null ? "–" : x >= 100 ? Math.round(x) : x.toFixed(1));
  return `read ${prefillTokens} at ${rate(prefillTokensPerSecond)} tok/s · wrote ${tokens} at ${rate(decodeTokensPerSecond)} tok/s · ${(milliseconds / 1000).toFixed(1)} s`;
}
