// Has a model write a message: the request, the stream of it, and its figures. Knows no view.
import { branch } from "./conversation.js";
import { complain } from "./live.js";
import { fieldsOf } from "./parameters.js";
import { ServerError, events, send } from "./server_api.js";

const controls = new Map(); // of the messages that are being written, by their ids

export function isWriting(message) {
  return controls.has(message.id);
}

export function stop(message) {
  controls.get(message.id)?.abort();
}

// Writes `message`, the last of its branch; what it has already is gone on from. `changed` is called after each part.
export async function write(conversation, message, changed) {
  const control = new AbortController();
  controls.set(message.id, control);
  const started = performance.now();
  Object.assign(message, { error: undefined, finish: undefined, warnings: undefined, figures: {} });
  changed();
  try {
    const reply = await send("/v1/chat/completions", { body: body(conversation, message), signal: control.signal });
    for await (const { data } of events(reply)) {
      if (data.error) throw new ServerError(data.error.message, 0, data.error.code);
      take(message, data, (performance.now() - started) / 1000);
      changed();
    }
    if (!message.finish) throw new ServerError("The connection to the server broke off.", 0);
  } catch (error) {
    if (error.name === "AbortError") message.finish = "stopped";
    else {
      message.error = error.message;
      complain(error.message, conversation.model);
    }
  } finally {
    controls.delete(message.id);
    delete message.wait;
    message.figures.totalS = (performance.now() - started) / 1000;
    changed();
  }
}

function body(conversation, message) {
  const { settings, model } = conversation;
  const said = branch(conversation, message.id).map(asSent);
  const isBegun = message.content !== "";
  if (!isBegun) said.pop();
  if (settings.system?.trim()) said.unshift({ role: "system", content: settings.system });
  const fields = { model, messages: said, stream: true, stream_options: { include_usage: true }, return_progress: true };
  if (isBegun) fields.continue_final_message = true;
  return { ...fields, ...fieldsOf(settings) };
}

function asSent({ role, content, reasoning, calls, callId }) {
  if (role === "tool") return { role, tool_call_id: callId, content };
  if (role === "user") return { role, content };
  const said = { role, content };
  if (reasoning) said.reasoning_content = reasoning;
  if (calls?.length) {
    said.tool_calls = calls.map(({ id, name, arguments: text }) => ({
      id, type: "function", function: { name, arguments: text },
    }));
  }
  return said;
}

function take(message, chunk, elapsedS) {
  const { figures } = message;
  const choice = chunk.choices?.[0];
  if (chunk.usage) {
    figures.nTokens = chunk.usage.completion_tokens;
    figures.nPrompt = chunk.usage.prompt_tokens;
    figures.nCached = chunk.usage.prompt_tokens_details?.cached_tokens;
  }
  if (chunk.timings) figures.perSecond = chunk.timings.predicted_per_second;
  if (chunk.queue_position || chunk.prompt_progress) message.wait = waitOf(chunk);
  if (chunk.warnings) message.warnings = chunk.warnings;
  if (!choice) return;
  const { content, reasoning_content: reasoning, tool_calls: calls } = choice.delta ?? {};
  if (content || reasoning || calls) figures.firstS ??= elapsedS;
  if (content) message.content += content;
  if (reasoning) message.reasoning = (message.reasoning ?? "") + reasoning;
  for (const call of calls ?? []) takeCall((message.calls ??= []), call);
  for (const token of choice.logprobs?.content ?? []) (message.tokens ??= []).push(shortToken(token));
  if (choice.finish_reason) message.finish = choice.finish_reason;
}

// What a reply waits for: a place in the queue, 1 for the next, or the rest of its prompt, `share` of which is read.
function waitOf({ queue_position: place, prompt_progress: read }) {
  return place ? { place } : { share: (read.processed - read.cache) / Math.max(1, read.total - read.cache) };
}

function takeCall(calls, { index, id, function: part, custom }) {
  const call = (calls[index] ??= { id: "", name: "", arguments: "" });
  if (id) call.id = id;
  const said = part ?? custom ?? {};
  if (said.name) call.name = said.name;
  call.arguments += said.arguments ?? said.input ?? "";
}

function shortToken({ token, bytes, logprob, top_logprobs: others }) {
  const short = (each) => ({ text: each.token, bytes: each.bytes, p: Math.exp(each.logprob) });
  return { ...short({ token, bytes, logprob }), others: (others ?? []).map(short) };
}
