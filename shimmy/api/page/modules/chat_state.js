// The conversation on the screen, the list of all, and what a person can do with them. Knows no view.
import { add, branch, newConversation, show } from "./conversation.js";
import { complain, models, writesText } from "./live.js";
import { isWriting, stop, write } from "./reply.js";
import { headers, read, remove, removeAll, write as writeDown } from "./storage.js";
import { Store, remember, remembered } from "./stores.js";

const SAVED_EVERY_MS = 1000;
const DRAWN_EVERY_MS = 40;

// `conversation` is changed in place; the store is set again whenever that happens.
export const chat = new Store({ headers: [], conversation: freshConversation() });
// Those that are being written in, by their ids: opened again, a conversation has to be the same object.
const busy = new Map();

let drawing = 0;
let drawingTook = 0;

export function freshConversation() {
  return newConversation(remembered("model", ""), remembered("settings", {}));
}

// Draws soon, and the less often the longer drawing takes: the page has to answer its person meanwhile.
function drawSoon() {
  drawing ||= setTimeout(() => {
    const started = performance.now();
    drawing = 0;
    chat.change({});
    setTimeout(() => (drawingTook = performance.now() - started));
  }, Math.max(DRAWN_EVERY_MS, 3 * drawingTook));
}

export async function listHeaders() {
  chat.change({ headers: await headers() });
}

// A browser may be full: the conversation goes on, and its person is told.
async function keep(conversation) {
  try {
    await writeDown(conversation);
  } catch (error) {
    complain(`The browser does not keep “${conversation.title}”: ${error?.message ?? "it has no room"}`);
  }
}

async function save(conversation) {
  await keep(conversation);
  await listHeaders();
}

export async function open(id) {
  const conversation = busy.get(id) ?? (await read(id));
  if (conversation) chat.change({ conversation });
  remember("conversation", id);
}

// What is being written when the page goes away stays as far as it has come. A database would come too late.
addEventListener("pagehide", () => {
  const writing = ({ id, messages }) => Object.values(messages).filter(isWriting).map((message) => ({ id, message }));
  remember("unsaved", [...busy.values()].flatMap(writing));
});

async function saveUnsaved() {
  for (const { id, message } of remembered("unsaved", [])) {
    const conversation = await read(id);
    if (!conversation) continue;
    conversation.messages[message.id] = message;
    await keep(conversation);
  }
  remember("unsaved", []);
}

export function startNew() {
  chat.change({ conversation: freshConversation() });
  remember("conversation", null);
}

// What was open last; a new conversation where that is gone.
export async function restore() {
  await saveUnsaved();
  const id = remembered("conversation", null);
  if (id) await open(id);
  await listHeaders();
}

// Ends what is written in a conversation that is not kept.
function drop(conversation) {
  if (!conversation) return;
  busy.delete(conversation.id);
  Object.values(conversation.messages).forEach(stop);
}

export async function forget(id) {
  drop(busy.get(id));
  await remove(id);
  if (chat.value.conversation.id === id) startNew();
  await listHeaders();
}

export async function forgetAll() {
  [...busy.values()].forEach(drop);
  await removeAll();
  startNew();
  await listHeaders();
}

export function choose(fields) {
  const { conversation } = chat.value;
  if (fields.model !== undefined) {
    conversation.model = fields.model;
    remember("model", fields.model);
  }
  if (fields.settings) {
    Object.assign(conversation.settings, fields.settings);
    remember("settings", conversation.settings);
  }
  if (conversation.leaf) keep(conversation);
  chat.change({});
}

// The model of a conversation; where the server has none of that name, the first that writes text.
export function chosenModel(conversation) {
  const list = (models.value.list ?? []).filter(writesText);
  if (conversation.model && (!models.value.list || list.some(({ name }) => name === conversation.model))) {
    return conversation.model;
  }
  const chats = list.filter((each) => each.has_chat_template);
  return (chats.find(({ state }) => state === "ready") ?? chats[0] ?? list[0])?.name ?? "";
}

async function run(conversation, message) {
  let saved = performance.now();
  conversation.model = message.model;
  busy.set(conversation.id, conversation);
  remember("conversation", conversation.id);
  const writing = write(conversation, message, () => {
    message.version = (message.version ?? 0) + 1;
    drawSoon();
    if (performance.now() - saved > SAVED_EVERY_MS && busy.has(conversation.id)) {
      saved = performance.now();
      keep(conversation);
    }
  });
  await save(conversation);
  await writing;
  const isOver = !Object.values(conversation.messages).some(isWriting);
  if (isOver && busy.has(conversation.id)) {
    busy.delete(conversation.id);
    await save(conversation);
  }
}

function answer(conversation, parent, fields = {}) {
  const message = add(conversation, parent, { role: "assistant", model: chosenModel(conversation), ...fields });
  return run(conversation, message);
}

export function ask(content) {
  const { conversation } = chat.value;
  const question = add(conversation, conversation.leaf, { role: "user", content });
  return answer(conversation, question.id);
}

// Another message in the place of a question, with a reply of its own.
export function askInstead(message, content) {
  const { conversation } = chat.value;
  const question = add(conversation, message.parent, { role: "user", content });
  return answer(conversation, question.id);
}

export function answerAgain(message) {
  return answer(chat.value.conversation, message.parent);
}

export function goOn(message) {
  return run(chat.value.conversation, message);
}

// A reply that begins like `message` as far as `content`, and then goes its own way.
export function goOnFrom(message, content, tokens) {
  return answer(chat.value.conversation, message.parent, { content, tokens });
}

// The results of the calls of `message`, in their order; the model goes on with them.
export function giveResults(message, results) {
  const { conversation } = chat.value;
  let parent = message.id;
  message.calls.forEach((call, index) => {
    parent = add(conversation, parent, { role: "tool", callId: call.id, name: call.name, content: results[index] }).id;
  });
  return answer(conversation, parent);
}

export function showVersion(message) {
  show(chat.value.conversation, message);
  keep(chat.value.conversation);
  chat.change({});
}

export function stopAll() {
  branch(chat.value.conversation).forEach(stop);
}
