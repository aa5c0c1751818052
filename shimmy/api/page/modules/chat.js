// The view of conversations: their list, the one that is open, and the box to write in.
import { useEffect, useLayoutEffect, useRef, useState } from "preact-hooks";
import { ask, chat, choose, chosenModel, forget, forgetAll, listHeaders, open, startNew, stopAll } from "./chat_state.js";
import { branch, versions } from "./conversation.js";
import { placeIn } from "./figures.js";
import { html } from "./html.js";
import { isServed, models, writesText } from "./live.js";
import { Message } from "./message.js";
import { FirstModel } from "./first_model.js";
import { isWriting } from "./reply.js";
import { Settings } from "./settings.js";
import { exported, importText } from "./storage.js";
import { useStore } from "./stores.js";

const MOST_REFUSED = 3; // more are in the view of models

export function Chat() {
  const { headers, conversation } = useStore(chat);
  const { list } = useStore(models);
  const [hasList, showList] = useState(false);
  const [hasSettings, showSettings] = useState(false);
  if (list && !list.some(writesText)) {
    const refused = list.filter((entry) => !isServed(entry)).slice(0, MOST_REFUSED);
    return html`<main class="page"><${FirstModel} refused=${refused} /></main>`;
  }
  const model = chosenModel(conversation);
  const entry = list?.find(({ name }) => name === model);
  return html`<div class="chat">
    <aside class=${hasList ? "list open" : "list"} aria-label="Conversations">
      <${Conversations} headers=${headers} current=${conversation.id} done=${() => showList(false)} />
    </aside>
    <main>
      <h1 class="unseen">Chat</h1>
      <div class="bar top">
        <button type="button" class="narrow" aria-expanded=${hasList} onClick=${() => showList(!hasList)}>Conversations</button>
        <${ModelChoice} list=${list ?? []} model=${model} />
        <button type="button" aria-expanded=${hasSettings} onClick=${() => showSettings(!hasSettings)}>Settings</button>
      </div>
      ${hasSettings && html`<${Settings} key=${conversation.id} conversation=${conversation} model=${model} />`}
      ${entry?.has_chat_template === false && html`<p class="soft bar">${model} has no chat template: a generic one is used,
        and replies may be odd.</p>`}
      <${Messages} conversation=${conversation} entry=${entry} />
      <${Box} key=${conversation.id} conversation=${conversation} model=${model} />
    </main>
  </div>`;
}

function ModelChoice({ list, model }) {
  const found = list.filter(writesText);
  return html`<select aria-label="Model" value=${model} onChange=${(event) => choose({ model: event.target.value })}>
    ${found.map(({ name, state }) => html`<option value=${name}>${name}${state === "unloaded" ? "" : ` (${state})`}</option>`)}
  </select>`;
}

function Conversations({ headers, current, done }) {
  const [trouble, setTrouble] = useState("");
  const file = useRef();
  const save = async () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([await exported()], { type: "application/json" }));
    link.download = "shimmy-conversations.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  };
  const load = async (event) => {
    try {
      const n = await importText(await event.target.files[0].text());
      setTrouble(n ? "" : "There is no conversation in this file.");
    } catch {
      setTrouble("This file has no conversations: it is not JSON.");
    }
    file.current.value = "";
    await listHeaders();
  };
  return html`
    <button type="button" class="main" onClick=${() => (startNew(), done())}>New conversation</button>
    <ul>${headers.map(({ id, title }) => html`<li key=${id} class="bar">
      <button type="button" class="title" aria-current=${id === current} onClick=${() => (open(id), done())}>
        ${title || "Conversation"}
      </button>
      <button type="button" class="quiet" aria-label=${`Delete “${title}”`} onClick=${() => forget(id)}>×</button>
    </li>`)}</ul>
    <div class="bar">
      <button type="button" class="quiet" onClick=${save} disabled=${!headers.length}>Export</button>
      <button type="button" class="quiet" onClick=${() => file.current.click()}>Import</button>
      <input type="file" accept="application/json,.json" hidden ref=${file} aria-label="File to import" onChange=${load} />
      <${DeleteAll} n=${headers.length} />
    </div>
    ${trouble && html`<p class="trouble" role="alert">${trouble}</p>`}
    <p class="soft">Conversations stay in this browser.</p>`;
}

function DeleteAll({ n }) {
  const [isAsked, setAsked] = useState(false);
  if (!isAsked) {
    return html`<button type="button" class="quiet" disabled=${!n} onClick=${() => setAsked(true)}>Delete all</button>`;
  }
  const sure = async () => {
    await forgetAll();
    setAsked(false);
  };
  return html`<span role="group" aria-label="Delete all conversations">
    <button type="button" class="danger" onClick=${sure}>Delete ${n}</button>
    <button type="button" class="quiet" onClick=${() => setAsked(false)}>Keep</button>
  </span>`;
}

// What a reply waits for, as far as the server has said.
function waitingFor(entry, wait) {
  if (wait?.place) return `Waiting for its turn: ${placeIn(wait.place)} …`;
  if (wait) return `Reading the prompt: ${Math.floor(100 * wait.share)} % …`;
  if (!entry || entry.state === "unloaded") return "Waiting for the model …";
  if (entry.state === "loading") {
    if (entry.converted_percent !== undefined) return `Converting the model: ${entry.converted_percent} % …`;
    if (entry.read_percent !== undefined) return `Loading the model: ${entry.read_percent} % …`;
    return entry.load_position ? `The model waits for memory: ${placeIn(entry.load_position)} …` : "Loading the model …";
  }
  return entry.jobs > 1 ? `Reading the prompt; the model has ${entry.jobs} jobs …` : "Reading the prompt …";
}

function Messages({ conversation, entry }) {
  const shown = branch(conversation);
  const byParent = versions(conversation);
  const scroller = useRef();
  const isAtEnd = useRef(true);
  useLayoutEffect(() => {
    isAtEnd.current = true;
  }, [conversation.id, shown.length]);
  useLayoutEffect(() => {
    if (isAtEnd.current) scroller.current.scrollTop = scroller.current.scrollHeight;
  });
  const follow = ({ target }) => (isAtEnd.current = target.scrollHeight - target.scrollTop - target.clientHeight < 40);
  const last = shown.at(-1);
  return html`<div class="messages" ref=${scroller} onScroll=${follow} tabindex="0" role="log" aria-live="off"
    aria-label="Messages">
    ${!shown.length && html`<p class="soft hello">Ask something. Everything stays on this server and in this browser.</p>`}
    ${shown.map((message) => html`<${Message} key=${message.id} message=${message} version=${message.version}
      siblings=${byParent.get(message.parent)} isWriting=${isWriting(message)} isLast=${message === last}
      waiting=${isWriting(message) ? waitingFor(entry, message.wait) : ""} />`)}
    <p class="unseen" role="status">${last?.role === "assistant" && !isWriting(last) && last.finish ? "The reply is there." : ""}
      ${last && isWriting(last) ? "The model writes." : ""}</p>
  </div>`;
}

function Box({ conversation, model }) {
  const [text, setText] = useState("");
  const area = useRef();
  const isBusy = branch(conversation).some(isWriting);
  const canSend = text.trim() && model && !isBusy;
  useEffect(() => matchMedia("(pointer: fine)").matches && area.current.focus(), []);
  const submit = (event) => {
    event.preventDefault();
    if (!canSend) return;
    setText("");
    ask(text);
  };
  const press = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submit(event);
    if (event.key === "Escape" && isBusy) stopAll();
  };
  return html`<form class="box" onSubmit=${submit}>
    <textarea ref=${area} rows=${Math.min(8, text.split("\n").length + 1)} value=${text} aria-label="Your message"
      placeholder="Enter sends, Shift+Enter begins a line" onInput=${(event) => setText(event.target.value)}
      onKeyDown=${press}></textarea>
    ${isBusy
      ? html`<button type="button" class="main" onClick=${stopAll}>Stop</button>`
      : html`<button type="submit" class="main" disabled=${!canSend}>Send</button>`}
  </form>`;
}
