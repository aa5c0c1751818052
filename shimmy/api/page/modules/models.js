// The view of models: which there are, how each of them stands, and what happens to them.
import { useEffect, useState } from "preact-hooks";
import { bytes, clock, count, placeIn, seconds } from "./figures.js";
import { FirstModel } from "./first_model.js";
import { html } from "./html.js";
import { complain, happened, isServed, models, refresh } from "./live.js";
import { Pull } from "./pull.js";
import { json, modelPath } from "./server_api.js";
import { useStore } from "./stores.js";

const EVERY_MS = 2000;

export function Models() {
  const { list } = useStore(models);
  const events = useStore(happened);
  const [looking, setLooking] = useState(false);
  const look = async () => {
    setLooking(true);
    await json("/api/models/discover", { method: "POST" }).then(refresh).catch((error) => complain(error.message));
    setLooking(false);
  };
  const hasWorkers = Boolean(list?.some(({ pid }) => pid));
  useEffect(() => {
    if (!hasWorkers) return;
    const timer = setInterval(() => document.hidden || refresh().catch(() => {}), EVERY_MS); // no event tells of jobs
    return () => clearInterval(timer);
  }, [hasWorkers]);
  if (!list) return html`<main class="page"><p class="soft waiting">Asking the server …</p></main>`;
  const served = list.filter(isServed);
  const others = list.filter((model) => !isServed(model));
  return html`<main class="page">
    <div class="bar"><h1>Models</h1>
      <button type="button" disabled=${looking} onClick=${look}>${looking ? "Looking …" : "Look for new files"}</button>
    </div>
    ${served.length ? html`<${Pull} />` : html`<${FirstModel} />`}
    <ul class="cards">${served.map((model) => html`<${Model} key=${model.name} model=${model} />`)}</ul>
    ${others.length > 0 && html`<section><h2>Not served</h2>
      <ul class="cards">${others.map((model) => html`<li class="card" key=${model.name + model.path}>
        <h3>${model.name}</h3><p>${model.error}</p><p class="soft path">${model.path}</p>
      </li>`)}</ul>
    </section>`}
    <section><h2>What has happened</h2><${Events} events=${events} /></section>
  </main>`;
}

function Model({ model }) {
  const [isWaiting, wait] = useState(false);
  const [trouble, setTrouble] = useState("");
  const [isAsked, setAsked] = useState(false);
  const act = (action) => async () => {
    wait(true);
    setTrouble("");
    setAsked(false);
    const method = action ? "POST" : "DELETE";
    await json(modelPath(model.name, action), { method }).catch((error) => setTrouble(error.message));
    wait(false);
    refresh().catch(() => {});
  };
  const isLoaded = model.state !== "unloaded";
  const said = trouble || model.error;
  return html`<li class="card">
    <div class="bar"><h2>${model.name}</h2><span class=${"state " + model.state}>${stateOf(model)}</span></div>
    <dl>${facts(model).map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
    ${[...model.notices, model.device_note].map((notice) => notice && html`<p class="soft">${notice}</p>`)}
    ${said && html`<p class="trouble" role="alert">${said}</p>`}
    <p class="soft path">${model.path}</p>
    <div class="bar">
      ${!isLoaded && html`<button type="button" disabled=${isWaiting} aria-label=${`Load ${model.name}`}
        onClick=${act("load")}>${isWaiting ? "Loading …" : "Load"}</button>`}
      ${isLoaded && html`<button type="button" disabled=${isWaiting} aria-label=${`Unload ${model.name}`}
        onClick=${act("unload")}>Unload</button>`}
      ${!isAsked && html`<button type="button" class="quiet" disabled=${isWaiting} aria-label=${`Delete ${model.name}`}
        onClick=${() => setAsked(true)}>Delete</button>`}
      ${isAsked && html`<button type="button" class="danger" onClick=${act("")}>Delete ${bytes(model.size_bytes)}</button>
        <button type="button" class="quiet" onClick=${() => setAsked(false)}>Keep</button>`}
    </div>
  </li>`;
}

function stateOf(model) {
  if (model.converted_percent !== undefined) return `converting ${model.converted_percent} %`;
  if (model.read_percent !== undefined) return `loading ${model.read_percent} %`;
  if (model.load_position) return `waits for memory: ${placeIn(model.load_position)}`;
  return { ready: "loaded", swapping: "a new version loads", unloaded: "not loaded" }[model.state] ?? model.state;
}

function facts(model) {
  const found = [
    ["size", bytes(model.size_bytes)],
    ["memory", `${bytes(model.memory.total_bytes)} (context ${bytes(model.memory.kv_bytes)})`],
    ["architecture", model.architecture],
    ["weights", [model.n_params && count(model.n_params), model.quantization].filter(Boolean).join(", ")],
    ["context", `${count(model.n_ctx ?? model.n_ctx_train)} tokens`],
    ["context in use", model.n_ctx_used !== undefined && !model.embedding && `${count(model.n_ctx_used)} tokens`],
    ["for", model.embedding ? "embeddings" : model.has_chat_template ? "chat" : "text"],
    ["where", model.cpu_variant && `processor (${model.cpu_variant})`],
    ["on GPUs", model.device && `${model.n_device_layers} of ${model.n_layers} layers: ${model.device}`],
    ["jobs", model.jobs || ""],
    ["idle", model.idle_s > 1 && seconds(model.idle_s)],
    ["adapters", model.adapters.length || ""],
  ];
  return found.filter(([, value]) => value);
}

const WORDS = {
  added: "was found", changed: "has a new file", removed: "is gone", rejected: "cannot be served",
  loading: "loads", reading: "is read,", loaded: "is loaded",
  swapped: "was replaced by its new version", unloaded: "was unloaded", died: "lost its worker", failed: "failed",
};

function Events({ events }) {
  if (!events.length) return html`<p class="soft">Nothing since this page was opened.</p>`;
  return html`<ol class="events" role="log" aria-label="Events">${events.map((event) => html`<li>
    <time>${clock(event.time)}</time> <strong>${event.model}</strong> ${WORDS[event.kind] ?? event.kind}
    ${event.percent !== undefined && ` ${event.percent} %`}${event.after && ` (after: ${event.after})`}
    ${event.load_s !== undefined && ` in ${seconds(event.load_s)}`}${event.reason && `: ${event.reason}`}
  </li>`)}</ol>`;
}
