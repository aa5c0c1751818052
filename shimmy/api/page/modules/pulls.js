// Models that are being fetched: those that were asked for here, and those that others have asked for.
import { ServerError, events, send } from "./server_api.js";
import { Store } from "./stores.js";

// { [reference]: { kind, total, completed, speed, leftS, error, control } }; `control` is there for those asked for here.
export const pulls = new Store({});

function change(reference, fields) {
  pulls.set({ ...pulls.value, [reference]: { ...pulls.value[reference], ...fields } });
}

// What a pull has said: `resolving`, `files`, `progress`, `waiting`, `done` or `error`; `stopped` when all who wanted it
// have left. One that was asked for here knows its own end.
export function hear(reference, kind, details) {
  if (kind === "stopped") {
    if (!pulls.value[reference]?.control) forget(reference);
    return;
  }
  const fields = { kind };
  if (details.total_bytes) fields.total = details.total_bytes;
  if (kind === "progress") {
    Object.assign(fields, { completed: details.completed_bytes, speed: details.bytes_per_s, leftS: details.eta_s });
  }
  if (kind === "waiting") fields.reason = details.reason;
  if (kind === "error") fields.error = details.error;
  if (kind === "done" && details.models && !details.models.length) fields.error = "What came is not a model for text.";
  change(reference, fields);
}

export async function pull(reference) {
  const control = new AbortController();
  change(reference, { kind: "resolving", error: undefined, completed: 0, control });
  try {
    const reply = await send("/api/models/pull", { body: { model: reference }, signal: control.signal });
    let last = "";
    for await (const { name, data } of events(reply)) {
      if (data.error) throw new ServerError(data.error.message, 0);
      last = name;
      hear(reference, name, data);
    }
    if (last !== "done") throw new ServerError("The connection to the server broke off. Pull again: it goes on.", 0);
  } catch (error) {
    if (error.name === "AbortError") forget(reference);
    else hear(reference, "error", { error: error.message });
  }
}

export function stopPull(reference) {
  pulls.value[reference]?.control?.abort();
}

export function forget(reference) {
  const { [reference]: _, ...others } = pulls.value;
  pulls.set(others);
}
