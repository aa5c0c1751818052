// The frame of the page: its views, the box for the key, and what holds for all of them.
import { render } from "preact";
import { useEffect, useRef, useState } from "preact-hooks";
import { Chat } from "./chat.js";
import { restore } from "./chat_state.js";
import { html } from "./html.js";
import { follow, models } from "./live.js";
import { Models } from "./models.js";
import { Server } from "./server.js";
import { access, giveKey } from "./server_api.js";
import { remember, remembered, useStore } from "./stores.js";

const VIEWS = { chat: ["Chat", Chat], models: ["Models", Models], server: ["Server", Server] };
const THEMES = { "light dark": "Auto", light: "Light", dark: "Dark" };

function viewOfAddress() {
  const name = location.hash.slice(1);
  return Object.hasOwn(VIEWS, name) ? name : "chat";
}

function App() {
  const [view, setView] = useState(viewOfAddress());
  const { isOnline } = useStore(models);
  const { asks } = useStore(access);
  useEffect(() => {
    addEventListener("hashchange", () => setView(viewOfAddress()));
  }, []);
  const [, View] = VIEWS[view];
  return html`
    <header>
      <strong class="brand">Shimmy</strong>
      <nav aria-label="Views">${Object.entries(VIEWS).map(([name, [title]]) => html`<a href=${"#" + name}
        aria-current=${name === view ? "page" : undefined}>${title}</a>`)}</nav>
      <a href="docs" class="wide">API</a>
      <${Theme} />
    </header>
    ${!isOnline && !asks && html`<p class="trouble offline" role="status">The server does not answer. This page tries again
      by itself; nothing of it is lost.</p>`}
    <${View} />
    ${asks && html`<${KeyBox} />`}`;
}

function paint(theme) {
  document.documentElement.style.colorScheme = theme;
}

function Theme() {
  const [theme, setTheme] = useState(remembered("theme", "light dark"));
  const choose = ({ target }) => {
    setTheme(target.value);
    remember("theme", target.value);
    paint(target.value);
  };
  return html`<select class="theme" aria-label="Colours" value=${theme} onChange=${choose}>
    ${Object.entries(THEMES).map(([value, name]) => html`<option value=${value}>${name}</option>`)}
  </select>`;
}

function KeyBox() {
  const { wasWrong } = useStore(access);
  const [key, setKey] = useState("");
  const [isKept, keep] = useState(false);
  const dialog = useRef();
  useEffect(() => dialog.current.showModal(), []);
  const isPossible = /^[\x21-\x7e]+$/.test(key.trim());
  const submit = (event) => {
    event.preventDefault();
    if (isPossible) giveKey(key, isKept);
  };
  return html`<dialog ref=${dialog} onCancel=${(event) => event.preventDefault()} aria-labelledby="key-title">
    <form onSubmit=${submit}>
      <h1 id="key-title">This server needs a key</h1>
      ${wasWrong && html`<p class="trouble" role="alert">The server does not know this key.</p>`}
      <label>Key<input type="password" autocomplete="off" value=${key} onInput=${(event) => setKey(event.target.value)} /></label>
      <label class="check"><input type="checkbox" checked=${isKept} onChange=${(event) => keep(event.target.checked)} />
        Keep it in this browser; otherwise until this tab is closed</label>
      <button type="submit" class="main" disabled=${!isPossible}>Go on</button>
    </form>
  </dialog>`;
}

paint(remembered("theme", "light dark"));
follow();
// What was open last is on the first picture, unless the browser takes its time to find it.
const patience = new Promise((resolve) => setTimeout(resolve, 1000));
Promise.race([restore().catch(() => {}), patience]).then(() => {
  render(html`<${App} />`, document.getElementById("app"));
});
