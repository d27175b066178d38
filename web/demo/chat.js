// The conversation: what was asked, the answer as it comes, how fast. Or a text that the model continues.
import { $, el, many, told } from "./dom.js";
import { perform, stop } from "./runner.js";
import { on, state } from "./state.js";

/** Things to try with the built-in model, by mode. */
const IDEAS = {
  chat: ["What is 37 + 48?", "Tom has a red ball. Ann has a blue kite. Who has the kite?", "What color is a carrot?"],
  text: ["The color of the sky is", "Once upon a time", "The opposite of hot is"],
};

let messages = [];
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
  $("stop").addEventListener("click", stop);
  $("new").addEventListener("click", fresh);
  $("mode").addEventListener("change", () => (fresh(), drawIdeas()));
  on("busy", drawBusy);
  on("model", newModel);
  newModel();
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

/** Begins anew. */
function fresh() {
  stop();
  messages = [];
  session?.close().catch(() => {});
  session = null;
  $("log").replaceChildren();
  $("rates").textContent = "";
  $("ask").placeholder = mode() === "chat" ? "Ask something" : "A text to continue";
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

async function ask(text) {
  const { model } = state;
  if (!model || !text.trim()) return;
  const options = sampling();
  const chatting = mode() === "chat" && model.info.chat;
  const turn = chatting ? say("user", text.trim()) : null;
  const answer = say(chatting ? "assistant" : "text", "");
  if (!chatting) answer.body.append(el("span", { class: "prompt", text }));
  const given = el("span", { class: "given" });
  answer.body.append(given);
  answer.element.classList.add("open");
  $("ask").value = "";
  const conversation = [...messages, { role: "user", content: text.trim() }];
  const input = chatting ? conversation : model.info.text ? text : parsedIds(text) ?? text;
  const prompt = !chatting ? (model.info.text ? { text } : null) : conversation.length === 1 ? { text: text.trim(), chat: true } : null;
  const onPart = (part) => {
    const near = $("log").scrollHeight - $("log").scrollTop - $("log").clientHeight < 80;
    given.append(model.info.text ? part.text : ` ${part.id ?? ""}`);
    if (near) $("log").scrollTop = $("log").scrollHeight;
  };
  try {
    if (chatting && $("inspector").hidden) session ??= await model.session();
    const done = await perform(input, options, { prompt, onPart, session: chatting ? session : null });
    if (chatting) messages = [...conversation, { role: "assistant", content: done.text }];
    answer.note.textContent = ending(done);
    $("rates").textContent = speed(done);
    $("told").textContent = done.text;
  } catch (error) {
    answer.note.className = "bad";
    answer.note.textContent = told(error);
    // What could not be answered may be asked again.
    if (!given.textContent) $("ask").value = text;
    turn?.element.classList.add("failed");
  } finally {
    answer.element.classList.remove("open");
    $("log").scrollTop = $("log").scrollHeight;
  }
}

const NAMES = { user: "You", assistant: "Model", text: "Text" };

/** A turn in the log; its parts. */
function say(role, text) {
  const body = el("div", { class: "body" }, text);
  const note = el("p", { class: "soft note" });
  const element = el("article", { class: `turn ${role}`, "aria-label": NAMES[role] }, body, note);
  $("log").append(element);
  $("log").scrollTop = $("log").scrollHeight;
  return { element, body, note };
}

const STOPS = { maxTokens: "ended at the most tokens that the sampling allows", context: "ended where the model's context ends", interrupted: "stopped", eos: "" };

const ending = ({ stop, findings }) => [STOPS[stop] ?? stop, findings.length ? many(findings.length, "anomaly").replace("anomalys", "anomalies") : ""].filter(Boolean).join(" · ");

function speed({ prefillTokens, prefillTokensPerSecond, tokens, decodeTokensPerSecond, milliseconds }) {
  const rate = (x) => (x === null ? "–" : x >= 100 ? Math.round(x) : x.toFixed(1));
  return `read ${prefillTokens} at ${rate(prefillTokensPerSecond)} tok/s · wrote ${tokens} at ${rate(decodeTokensPerSecond)} tok/s · ${(milliseconds / 1000).toFixed(1)} s`;
}
