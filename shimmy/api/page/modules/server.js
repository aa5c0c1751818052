// The view of the server: what it does now, how long things took, what went wrong, and how programs use it.
import { useEffect, useState } from "preact-hooks";
import { Histogram, Line } from "./charts.js";
import { chat, chosenModel } from "./chat_state.js";
import { Code } from "./code.js";
import { bytes, clock, count } from "./figures.js";
import { html } from "./html.js";
import { failures, models } from "./live.js";
import { buckets, byLabel, readMetrics, total } from "./prometheus.js";
import { hasKey, send } from "./server_api.js";
import { useStore } from "./stores.js";

const EVERY_MS = 2000;
const MOST_POINTS = 60;

// The metrics of now, and the rate of tokens since the page looks: { metrics, rates, trouble }.
function useMetrics() {
  const [seen, setSeen] = useState({ metrics: null, rates: [], trouble: "" });
  useEffect(() => {
    let before = null;
    let isOpen = true;
    const look = async () => {
      if (document.hidden) return;
      try {
        const metrics = readMetrics(await (await send("/metrics")).text());
        const now = { tokens: total(metrics.shimmy_completion_tokens_total), ms: performance.now() };
        const rate = before ? (1000 * Math.max(now.tokens - before.tokens, 0)) / (now.ms - before.ms) : 0;
        before = now;
        if (isOpen) setSeen(({ rates }) => ({ metrics, rates: [...rates, rate].slice(-MOST_POINTS), trouble: "" }));
      } catch (error) {
        if (isOpen) setSeen((last) => ({ ...last, trouble: error.message }));
      }
    };
    look();
    const timer = setInterval(look, EVERY_MS);
    return () => {
      isOpen = false;
      clearInterval(timer);
    };
  }, []);
  return seen;
}

export function Server() {
  const { metrics, rates, trouble } = useMetrics();
  return html`<main class="page">
    <h1>Server</h1>
    ${trouble && html`<p class="trouble" role="alert">${trouble}</p>`}
    ${metrics && html`<${Now} metrics=${metrics} rates=${rates} /><${AtWork} metrics=${metrics} /><${Histograms} metrics=${metrics} />`}
    <${Failures} />
    <${Lines} />
  </main>`;
}

function Now({ metrics, rates }) {
  const rate = rates.at(-1) ?? 0;
  const sum = (name) => total(metrics[`shimmy_${name}`]);
  const figures = [
    ["running jobs", sum("jobs_running")],
    ["waiting jobs", sum("jobs_queued")],
    ["tokens written", count(sum("completion_tokens_total"))],
    ["prompt tokens", count(sum("prompt_tokens_total"))],
    ["of them cached", count(sum("cached_tokens_total"))],
    ["loaded models", sum("models_loaded")],
    ["memory reserved", bytes(sum("memory_given_bytes"))],
    ["workers that died", sum("worker_deaths_total")],
  ];
  return html`<section>
    <dl class="tiles">${figures.map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
    <figure class="card"><figcaption>Tokens a second, of finished jobs <span class="soft">now ${rate.toFixed(1)}</span></figcaption>
      <${Line} values=${rates} label=${`Tokens a second, now ${rate.toFixed(1)}, at most ${Math.max(...rates, 0).toFixed(1)}`} />
    </figure>
  </section>`;
}

// Each model that has a worker or jobs: its queue, and how full its KV cache is.
function AtWork({ metrics }) {
  const names = ["jobs_running", "jobs_queued", "kv_used_tokens", "kv_tokens"];
  const [running, waiting, used, size] = names.map((name) => byLabel(metrics[`shimmy_${name}`], "model"));
  const models = [...new Map([...size, ...waiting]).keys()].filter((model) => size.get(model) || waiting.get(model)).sort();
  if (!models.length) return null;
  return html`<section><h2>Models at work</h2>
    <div class="table" tabindex="0"><table>
      <thead><tr>${["model", "running", "waiting", "KV cache"].map((name) => html`<th scope="col">${name}</th>`)}</tr></thead>
      <tbody>${models.map((model) => html`<tr key=${model}><th scope="row">${model}</th>
        <td>${running.get(model) ?? 0}</td><td>${waiting.get(model) ?? 0}</td>
        <td><${Filled} model=${model} used=${used.get(model)} size=${size.get(model)} /></td>
      </tr>`)}</tbody>
    </table></div>
  </section>`;
}

function Filled({ model, used, size }) {
  return size
    ? html`<meter min="0" max=${size} value=${used} aria-label=${`KV cache of ${model}`}></meter> ${count(used)} of ${count(size)} tokens`
    : "not loaded";
}

function Histograms({ metrics }) {
  const found = Object.values(metrics).filter(({ type, samples }) => type === "histogram" && samples.length);
  if (!found.length) return null;
  return html`<section><h2>How long things took</h2>
    <div class="cards">${found.map((metric) => html`<${Histogram} key=${metric.help} title=${metric.help.replace(/[.:].*/, "")}
      buckets=${buckets(metric)} />`)}</div>
  </section>`;
}

function Failures() {
  const list = useStore(failures);
  return html`<section><h2>Last errors</h2>
    ${!list.length && html`<p class="soft">None since this page was opened.</p>`}
    <ol class="events">${list.map(({ message, model, time }) => html`<li>
      <time>${clock(time)}</time> <strong>${model}</strong> ${message}
    </li>`)}</ol>
  </section>`;
}

// What a program needs to use the model that is chosen for the chat.
function Lines() {
  useStore(models);
  const { conversation } = useStore(chat);
  const [kind, choose] = useState("curl");
  const model = chosenModel(conversation) || "MODEL";
  const address = new URL("./v1", document.baseURI).href;
  const lines = LINES[kind](address, JSON.stringify(model));
  return html`<section><h2>Use it from a program</h2>
    <p>The address is <code>${address}</code>, the model <code>${model}</code>${hasKey() && ", and the key that you gave"}.</p>
    <div class="bar" role="group" aria-label="Language">${Object.keys(LINES).map((name) => html`<button type="button"
      class="quiet" aria-pressed=${name === kind} onClick=${() => choose(name)}>${name}</button>`)}</div>
    <${Code} text=${lines} language=${kind === "curl" ? "bash" : kind} />
  </section>`;
}

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const LINES = {
  curl: (address, model) => {
    const body = `{"model": ${model}, "messages": [{"role": "user", "content": "Hello"}]}`;
    const key = hasKey() ? ' -H "Authorization: Bearer $SHIMMY_API_KEY"' : "";
    return `curl ${address}/chat/completions${key} -H 'Content-Type: application/json' -d ${shell(body)}`;
  },
  python: (address, model) => [
    ...(hasKey() ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${address}", api_key=${hasKey() ? 'os.environ["SHIMMY_API_KEY"]' : '"none"'})`,
    `messages = [{"role": "user", "content": "Hello"}]`,
    `reply = client.chat.completions.create(model=${model}, messages=messages)`,
    "print(reply.choices[0].message.content)",
  ].join("\n"),
  javascript: (address, model) => [
    `const reply = await fetch("${address}/chat/completions", {`,
    '  method: "POST",',
    `  headers: { "Content-Type": "application/json"${hasKey() ? ", Authorization: `Bearer ${process.env.SHIMMY_API_KEY}`" : ""} },`,
    `  body: JSON.stringify({ model: ${model}, messages: [{ role: "user", content: "Hello" }] }),`,
    "});",
    "console.log((await reply.json()).choices[0].message.content);",
  ].join("\n"),
};
