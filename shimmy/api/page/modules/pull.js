// A box to fetch a model with, what is suggested where there is none, and how far each pull is.
import { useEffect, useState } from "preact-hooks";
import { bytes, seconds } from "./figures.js";
import { html } from "./html.js";
import { forget, pull, pulls, stopPull } from "./pulls.js";
import { json } from "./server_api.js";
import { useStore } from "./stores.js";

export function Pull() {
  const running = useStore(pulls);
  const [name, setName] = useState("");
  const submit = (event) => {
    event.preventDefault();
    pull(name.trim());
    setName("");
  };
  return html`<form class="bar pull" onSubmit=${submit}>
      <label>Fetch a model
        <input value=${name} placeholder="OWNER/NAME:Q4_K_M, an address, or a name of Ollama's"
          onInput=${(event) => setName(event.target.value)} />
      </label>
      <button type="submit" disabled=${!name.trim()}>Pull</button>
    </form>
    <ul class="events">${Object.entries(running).map(([reference, state]) => html`<${Progress} key=${reference}
      reference=${reference} state=${state} />`)}</ul>`;
}

function Progress({ reference, state }) {
  const { kind, total, completed = 0, speed, leftS, error, control, reason } = state;
  const isOver = error || kind === "done";
  const words = {
    resolving: "looking for it", files: "begins", waiting: reason, done: "is there",
    progress: `${bytes(completed)}${total ? ` of ${bytes(total)}` : ""}${speed ? `, ${bytes(speed)}/s` : ""}`
      + (leftS ? `, ${seconds(leftS)} left` : ""),
  };
  return html`<li>
    <div class="bar"><strong>${reference}</strong> <span>${error ? "" : words[kind] ?? kind}</span>
      ${!isOver && control && html`<button type="button" class="quiet" aria-label=${`Stop ${reference}`}
        onClick=${() => stopPull(reference)}>Stop</button>`}
      ${error && html`<button type="button" class="quiet" onClick=${() => pull(reference)}>Pull again</button>`}
      ${isOver && html`<button type="button" class="quiet" aria-label=${`Forget ${reference}`}
        onClick=${() => forget(reference)}>×</button>`}
    </div>
    ${!isOver && html`<progress aria-label=${`Progress of ${reference}`} max=${total || 1}
      value=${total ? completed : undefined}></progress>`}
    ${error && html`<p class="trouble" role="alert">${error}</p>`}
  </li>`;
}

export function Suggestions() {
  const [list, setList] = useState([]);
  const running = useStore(pulls);
  useEffect(() => {
    json("/api/suggestions").then((found) => setList(found.suggestions), () => {});
  }, []);
  return html`<ul class="cards">${list.map(({ model, size_bytes: size, about }) => html`<li class="card" key=${model}>
    <p><strong>${model}</strong></p><p>${bytes(size)}: ${about}</p>
    <button type="button" class="main" disabled=${model in running} aria-label=${`Pull ${model}`}
      onClick=${() => pull(model)}>Pull</button>
  </li>`)}</ul>`;
}
