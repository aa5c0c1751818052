// Talks to the server: the key, JSON, errors as people read them, the events of streams. Knows no view.
import { Store } from "./stores.js";

export class ServerError extends Error {
  // `status` is 0 where no reply came.
  constructor(message, status, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

// Whether the server has asked for a key, and whether the last one was wrong.
export const access = new Store({ asks: false, wasWrong: false });
const KEY = "shimmy.key";
let key = kept();
let waiting = [];

function kept() {
  try {
    return sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

export function hasKey() {
  return key !== "";
}

export function giveKey(given, isKept) {
  key = given.trim();
  try {
    for (const storage of [sessionStorage, localStorage]) storage.removeItem(KEY);
    if (key) (isKept ? localStorage : sessionStorage).setItem(KEY, key);
  } catch {
    // A browser that keeps nothing: the key holds until the page is closed.
  }
  access.set({ asks: false, wasWrong: false });
  for (const go of waiting) go();
  waiting = [];
}

function keyGiven(wasWrong) {
  return new Promise((resolve) => {
    waiting.push(resolve);
    access.set({ asks: true, wasWrong });
  });
}

// The reply to a request; waits for a key where one is needed. Raises ServerError, and AbortError when `signal` says so.
export async function send(path, { method, body, signal } = {}) {
  for (;;) {
    const used = key;
    const headers = { Accept: "application/json, text/event-stream, text/plain" };
    if (used) headers.Authorization = `Bearer ${used}`;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    const options = { method: method ?? (body === undefined ? "GET" : "POST"), headers, signal, cache: "no-store" };
    if (body !== undefined) options.body = JSON.stringify(body);
    const reply = await fetch("." + path, options).catch((error) => {
      throw error.name === "AbortError" ? error : new ServerError("The server does not answer.", 0);
    });
    if (reply.status === 401) {
      if (used === key) await keyGiven(used !== "");
    } else if (reply.ok) {
      return reply;
    } else {
      throw await errorIn(reply);
    }
  }
}

export async function json(path, options) {
  return (await send(path, options)).json();
}

async function errorIn(reply) {
  const said = await reply.json().catch(() => null);
  return new ServerError(said?.error?.message ?? `The server answers ${reply.status}.`, reply.status, said?.error?.code);
}

// The events of a stream as { name, data }, `data` decoded from JSON. Raises ServerError when it breaks off.
export async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read().catch((error) => {
        throw error.name === "AbortError" ? error : new ServerError("The connection to the server broke off.", 0);
      });
      if (done) return;
      const frames = (rest + value).split("\n\n");
      rest = frames.pop();
      for (const frame of frames) yield* eventIn(frame);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function* eventIn(frame) {
  let name = "message";
  let data = "";
  for (const line of frame.split("\n")) {
    if (line.startsWith("event: ")) name = line.slice(7);
    else if (line.startsWith("data: ")) data += line.slice(6);
  }
  if (data && data !== "[DONE]") yield { name, data: JSON.parse(data) };
}

export function modelPath(name, action) {
  return `/api/models/${name.split("/").map(encodeURIComponent).join("/")}${action && "/" + action}`;
}
