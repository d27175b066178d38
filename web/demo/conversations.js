// Conversations that this browser keeps: their messages, the system prompt, and which model answered.
const KEY = "doppler-conversations";
/** The most that are kept; the oldest go first. */
const MOST = 50;

/** The newest first: `{ id, title, system, messages, at }`, a message being `{ role, content, model }`. */
export function list() {
  try {
    const known = JSON.parse(localStorage.getItem(KEY) ?? "[]");
    return Array.isArray(known) ? known.filter(isOne) : [];
  } catch {
    return [];
  }
}

const isText = (x) => typeof x === "string";
const isOne = (c) => isText(c?.id) && isText(c.title) && isText(c.system) && Array.isArray(c.messages) && c.messages.every((m) => isText(m?.role) && isText(m.content));

/** Keeps a conversation in place of what was kept of it; why that cannot be, or null. */
export function keep(conversation) {
  const others = list().filter(({ id }) => id !== conversation.id);
  return write([conversation, ...others].slice(0, MOST));
}

export const remove = (id) => write(list().filter((one) => one.id !== id));
export const removeAll = () => write([]);

function write(all) {
  try {
    localStorage.setItem(KEY, JSON.stringify(all));
    return null;
  } catch (error) {
    return `This conversation is not kept: ${error.message}`;
  }
}

/** A new one, of which nothing is kept yet. */
export const fresh = () => ({ id: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`, title: "", system: "", messages: [], at: Date.now() });
