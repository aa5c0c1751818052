// OpenAI's client for Node, as its users use it; run by test_node.py, which tells it where the server is.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI, { NotFoundError } from "openai";
import { zodFunction, zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ maxRetries: 0 });
const model = "gpt-4o-mini";
const messages = [{ role: "user", content: "What is the capital of France? Answer in one sentence." }];

const City = z.object({
  name: z.string().max(20),
  continent: z.enum(["Africa", "America", "Asia", "Australia", "Europe"]),
});
const Weather = z.object({ city: z.enum(["Paris", "Rome", "Oslo"]), days: z.number().int().min(1).max(7) });

test("chat", async () => {
  const reply = await client.chat.completions.create({ model, messages });
  assert.match(reply.choices[0].message.content, /Paris/);
  assert.equal(reply.usage.total_tokens, reply.usage.prompt_tokens + reply.usage.completion_tokens);
});

test("stream", async () => {
  const whole = await client.chat.completions.create({ model, messages });
  const stream = await client.chat.completions.create({ model, messages, stream: true });
  let text = "";
  for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
  assert.equal(text, whole.choices[0].message.content);
});

test("stream helper", async () => {
  const stream = client.chat.completions.stream({ model, messages, stream_options: { include_usage: true } });
  let text = "";
  stream.on("content", (delta) => (text += delta));
  assert.equal(await stream.finalContent(), text);
  assert.ok((await stream.totalUsage()).completion_tokens > 0);
});

test("a stream can be left", async () => {
  const stream = await client.chat.completions.create({ model, messages, stream: true });
  for await (const chunk of stream) {
    assert.ok(chunk.choices);
    stream.controller.abort();
  }
  assert.ok((await client.chat.completions.create({ model, messages, max_tokens: 1 })).choices);
});

test("many at once", async () => {
  const replies = await Promise.all(
    Array.from({ length: 8 }, (_, number) =>
      client.chat.completions.create({
        model, max_tokens: 16, messages: [{ role: "user", content: `Count from ${number}.` }],
      })));
  for (const reply of replies) assert.ok(reply.choices[0].message.content);
});

test("embeddings", async () => {
  const reply = await client.embeddings.create({ model: "text-embedding-3-small", input: ["one", "two"] });
  assert.deepEqual(reply.data.map((item) => item.embedding.length), [384, 384]);
});

test("errors have their types", async () => {
  await assert.rejects(client.chat.completions.create({ model: "no-such-model", messages }), NotFoundError);
});

test("tools: the runner calls the function", async () => {
  const asked = [];
  const getWeather = (weather) => {
    asked.push(weather);
    return "sunny";
  };
  const runner = client.chat.completions.runTools({
    model,
    messages: [{ role: "user", content: "What is the weather in Paris?" }],
    tools: [zodFunction({ name: "get_weather", parameters: Weather, function: getWeather })],
    tool_choice: { type: "function", function: { name: "get_weather" } },
    parallel_tool_calls: false,
  });
  await runner.done();
  assert.equal(asked.length, 1);
  assert.ok(Weather.parse(asked[0]));
});

test("tools: the runner streams", async () => {
  const asked = [];
  const runner = client.chat.completions.runTools({
    model,
    stream: true,
    messages: [{ role: "user", content: "What is the weather in Paris?" }],
    tools: [zodFunction({ name: "get_weather", parameters: Weather, function: (weather) => asked.push(weather) })],
    tool_choice: { type: "function", function: { name: "get_weather" } },
    parallel_tool_calls: false,
  });
  await runner.done();
  assert.equal(asked.length, 1);
  assert.ok(Weather.parse(asked[0]));
});

test("an answer parsed by a schema", async () => {
  const reply = await client.chat.completions.parse({
    model, messages, response_format: zodResponseFormat(City, "city"),
  });
  assert.deepEqual(reply.choices[0].message.parsed, City.parse(reply.choices[0].message.parsed));
});

test("responses", async () => {
  const first = await client.responses.create({ model, input: messages[0].content });
  assert.match(first.output_text, /Paris/);
  const stream = await client.responses.create({
    model, input: "And of Italy?", previous_response_id: first.id, stream: true,
  });
  let text = "";
  let last;
  for await (const event of stream) {
    if (event.type === "response.output_text.delta") text += event.delta;
    last = event;
  }
  assert.equal(last.type, "response.completed");
  assert.equal(last.response.output[0].content[0].text, text);
});

test("a response parsed by a schema", async () => {
  const response = await client.responses.parse({
    model, input: messages[0].content, text: { format: zodTextFormat(City, "city") },
  });
  assert.ok(City.parse(response.output_parsed));
});
