// Conversations in this browser's IndexedDB: short headers for the list, and each conversation by itself.
// Where a browser keeps nothing, they last as long as the page.
import { readConversation } from "./conversation.js";

const HEADERS = "headers";
const BODIES = "conversations";
const memory = { [HEADERS]: new Map(), [BODIES]: new Map() };
let opening = null;

function database() {
  opening ??= new Promise((resolve) => {
    try {
      const request = indexedDB.open("shimmy", 1);
      request.onupgradeneeded = () => {
        for (const name of [HEADERS, BODIES]) request.result.createObjectStore(name, { keyPath: "id" });
      };
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => resolve(null);
    } catch {
      resolve(null);
    }
  });
  return opening;
}

// Runs `action` on the stores of one transaction, and returns what its request has found.
async function transact(mode, names, action) {
  const open = await database();
  if (!open) return undefined;
  return new Promise((resolve, reject) => {
    const transaction = open.transaction(names, mode);
    const request = action(...names.map((name) => transaction.objectStore(name)));
    transaction.oncomplete = () => resolve(request?.result);
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });
}

async function all(name) {
  return (await transact("readonly", [name], (store) => store.getAll())) ?? [...memory[name].values()];
}

// { id, title, changed } of all conversations, the latest first.
export async function headers() {
  return (await all(HEADERS)).sort((one, other) => other.changed - one.changed);
}

export async function read(id) {
  return (await transact("readonly", [BODIES], (store) => store.get(id))) ?? memory[BODIES].get(id);
}

export async function write(conversation) {
  await writeAll([conversation]);
}

async function writeAll(conversations) {
  if (!(await database())) {
    for (const each of conversations) {
      memory[BODIES].set(each.id, each);
      memory[HEADERS].set(each.id, header(each));
    }
    return;
  }
  await transact("readwrite", [HEADERS, BODIES], (headers, bodies) => {
    for (const each of conversations) {
      bodies.put(each);
      headers.put(header(each));
    }
  });
}

function header({ id, title, changed }) {
  return { id, title, changed };
}

export async function remove(id) {
  for (const kept of Object.values(memory)) kept.delete(id);
  await transact("readwrite", [HEADERS, BODIES], (...stores) => stores.forEach((store) => store.delete(id)));
}

export async function removeAll() {
  for (const kept of Object.values(memory)) kept.clear();
  await transact("readwrite", [HEADERS, BODIES], (...stores) => stores.forEach((store) => store.clear()));
}

export async function exported() {
  return JSON.stringify({ shimmy_conversations: 1, conversations: await all(BODIES) });
}

// Adds the conversations of an exported text; returns how many there were.
export async function importText(text) {
  const given = JSON.parse(text);
  const list = Array.isArray(given?.conversations) ? given.conversations : [];
  const found = list.map(readConversation).filter(Boolean);
  await writeAll(found);
  return found.length;
}
