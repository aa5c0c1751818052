// What a person can set for a conversation, and the fields of a request that it becomes.
import { ServerError } from "./server_api.js";

// Field, label, and what it does; an empty box leaves it to the model.
export const NUMBERS = [
  ["temperature", "Temperature", "0 picks the most likely token"],
  ["top_k", "Top-k", "only so many of the likeliest tokens; 0 is all"],
  ["top_p", "Top-p", "the likeliest tokens up to this probability together"],
  ["min_p", "Min-p", "no token below this part of the likeliest one's probability"],
  ["repeat_penalty", "Repeat penalty", "1 is none"],
  ["presence_penalty", "Presence penalty", "0 is none"],
  ["frequency_penalty", "Frequency penalty", "0 is none"],
  ["seed", "Seed", "the same number, the same reply"],
  ["max_tokens", "Longest reply", "in tokens"],
];
export const EFFORTS = ["none", "minimal", "low", "medium", "high"];

export function fieldsOf(settings) {
  const fields = {};
  for (const [name, label] of NUMBERS) {
    const given = (settings[name] ?? "").trim();
    if (!given) continue;
    fields[name] = Number(given.replace(",", "."));
    if (Number.isNaN(fields[name])) throw new ServerError(`${label} is not a number: ${given}`, 0);
  }
  const stop = (settings.stop ?? "").split("\n").filter(Boolean);
  if (stop.length) fields.stop = stop;
  if (settings.effort) fields.reasoning_effort = settings.effort;
  if (settings.schema?.trim()) {
    const schema = parsed(settings.schema, "The JSON Schema");
    fields.response_format = { type: "json_schema", json_schema: { name: "reply", schema } };
  }
  if (settings.tools?.trim()) fields.tools = parsed(settings.tools, "The list of tools");
  if (settings.probabilities) Object.assign(fields, { logprobs: true, top_logprobs: 5 });
  return fields;
}

function parsed(text, what) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new ServerError(`${what} is not JSON: ${error.message}`, 0);
  }
}
