// What the server says of its models, kept up to date by its events. Survives restarts of the server.
import { Store } from "./stores.js";
import { hear } from "./pulls.js";
import { events, json, send } from "./server_api.js";

const AGAIN_MS = 1000;
const SETTLED_MS = 100; // many events come together
const MOST_EVENTS = 200;

// `list` is null until the first answer.
export const models = new Store({ list: null, isOnline: true });
// What has happened, the newest first: { kind, model, time, ... }.
export const happened = new Store([]);
// What went wrong, the newest first: { message, model, time }.
export const failures = new Store([]);

let settling = 0;

export function complain(message, model = "") {
  failures.set([{ message, model, time: Date.now() / 1000 }, ...failures.value].slice(0, 50));
}

export async function refresh() {
  const { models: list } = await json("/api/models");
  models.set({ list, isOnline: true });
}

function refreshSoon() {
  settling ||= setTimeout(() => {
    settling = 0;
    refresh().catch(() => {});
  }, SETTLED_MS);
}

function take({ name, data }) {
  if (name === "models") {
    models.set({ list: data.models, isOnline: true });
    return;
  }
  if (name.startsWith("pull_")) {
    hear(data.model, name.slice(5), data);
    return;
  }
  const last = happened.value[0];
  const isNew = data.percent === undefined || last?.kind !== name || last.model !== data.model;
  happened.set([{ ...data, kind: name }, ...happened.value.slice(isNew ? 0 : 1)].slice(0, MOST_EVENTS));
  if (name === "failed") complain(data.reason, data.model);
  if (name === "died") complain("Its worker ended unasked.", data.model);
  refreshSoon();
}

// Listens as long as the page is open.
export async function follow() {
  for (;;) {
    try {
      for await (const event of events(await send("/api/events"))) take(event);
    } catch (error) {
      if (error.status) complain(error.message);
    }
    models.change({ isOnline: false });
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
}

export function isServed(model) {
  return model.state !== "unavailable";
}

export function writesText(model) {
  return isServed(model) && !model.embedding;
}
