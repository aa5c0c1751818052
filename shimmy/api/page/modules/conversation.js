// A conversation: a tree of messages, and the branch of it that is shown. Knows neither server nor browser.
//
// { id, title, model, settings, changed, leaf, messages: { [id]: message } }, and a message
// { id, parent, role, content, ... }; `parent` and `leaf` are ids or null, `role` is user, assistant or tool.

export function newConversation(model, settings) {
  return { id: newId(), title: "", model, settings: { ...settings }, changed: Date.now(), leaf: null, messages: {} };
}

export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(9)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// The messages that are shown, the first one first.
export function branch(conversation, leaf = conversation.leaf) {
  const shown = [];
  for (let id = leaf; id !== null; id = conversation.messages[id].parent) shown.push(conversation.messages[id]);
  return shown.reverse();
}

export function add(conversation, parent, fields) {
  const message = { id: newId(), parent, created: Date.now(), content: "", ...fields };
  conversation.messages[message.id] = message;
  conversation.leaf = message.id;
  conversation.changed = message.created;
  if (!conversation.title && message.role === "user") conversation.title = titleOf(message.content);
  return message;
}

export function children(conversation, parent) {
  const found = Object.values(conversation.messages).filter((message) => message.parent === parent);
  return found.sort((one, other) => one.created - other.created);
}

// Shows the branch that leads through this message to the end that was written last.
export function show(conversation, message) {
  let leaf = message.id;
  for (let below; (below = children(conversation, leaf)).length; ) leaf = below.at(-1).id;
  conversation.leaf = leaf;
}

// How many versions each message has, by its parent: counted once for all of them.
export function versions(conversation) {
  const found = new Map();
  for (const message of Object.values(conversation.messages)) {
    const siblings = found.get(message.parent) ?? [];
    siblings.push(message);
    found.set(message.parent, siblings);
  }
  for (const siblings of found.values()) siblings.sort((one, other) => one.created - other.created);
  return found;
}

function titleOf(text) {
  const line = text.trim().split("\n")[0];
  return line.length > 60 ? line.slice(0, 59) + "…" : line || "Conversation";
}

const ROLES = ["user", "assistant", "tool"];
const isText = (value) => typeof value === "string";

// A conversation of a file that anyone may have written; null where it is none.
export function readConversation(given) {
  if (given === null || typeof given !== "object" || !given.messages || typeof given.messages !== "object") return null;
  const conversation = newConversation(isText(given.model) ? given.model : "", readSettings(given.settings));
  conversation.title = isText(given.title) ? given.title.slice(0, 200) : "Conversation";
  conversation.changed = Number(given.changed) || Date.now();
  for (const [id, message] of Object.entries(given.messages)) {
    const known = /^[0-9a-f]{1,40}$/.test(id) && message && ROLES.includes(message.role) && isText(message.content);
    if (known) conversation.messages[id] = { ...readMessage(message), id, parent: message.parent ?? null };
  }
  const reached = (id, seen = new Set()) => {
    for (; id !== null; id = conversation.messages[id].parent) {
      if (seen.has(id) || !Object.hasOwn(conversation.messages, id)) return false;
      seen.add(id);
    }
    return true;
  };
  const broken = Object.keys(conversation.messages).filter((id) => !reached(id));
  for (const id of broken) delete conversation.messages[id];
  const isThere = isText(given.leaf) && Object.hasOwn(conversation.messages, given.leaf);
  conversation.leaf = isThere ? given.leaf : null;
  const first = children(conversation, null).at(-1);
  if (!isThere && first) show(conversation, first);
  return conversation;
}

function readMessage(given) {
  const message = { role: given.role, content: given.content, created: Number(given.created) || 0 };
  for (const name of ["reasoning", "model", "error", "finish", "callId", "name"]) {
    if (isText(given[name])) message[name] = given[name];
  }
  if (Array.isArray(given.calls)) {
    message.calls = given.calls.map((call) => ({
      id: String(call?.id), name: String(call?.name), arguments: String(call?.arguments),
    }));
  }
  message.figures = only(given.figures, (value) => typeof value === "number");
  return message;
}

function readSettings(given) {
  return only(given, (value) => isText(value) || typeof value === "boolean");
}

function only(given, isWanted) {
  const entries = given && typeof given === "object" ? Object.entries(given) : [];
  return Object.fromEntries(entries.filter(([, value]) => isWanted(value)));
}
