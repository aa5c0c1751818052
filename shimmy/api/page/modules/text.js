// Text of a model as it may be shown: what would turn other text around is made visible. And how text is copied.
import { useState } from "preact-hooks";
import { html } from "./html.js";

// Controls that make text after them run the other way round: (Unicode TR 9; https://trojansource.codes)
const OVERRIDES = /[\u202a-\u202e\u2066-\u2069]/g;

export function visible(text) {
  return text.replace(OVERRIDES, (control) => `‹U+${control.codePointAt(0).toString(16).toUpperCase()}›`);
}

async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // A page that came over plain HTTP from another machine has no clipboard.
  const area = document.createElement("textarea");
  area.value = text;
  area.style.position = "fixed";
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

export function CopyButton({ text, what }) {
  const [isDone, setDone] = useState(false);
  const press = async () => {
    await copy(text);
    setDone(true);
    setTimeout(() => setDone(false), 1500);
  };
  return html`<button type="button" class="quiet" aria-label=${`Copy ${what}`} onClick=${press}>
    ${isDone ? "Copied" : "Copy"}
  </button>`;
}

const MOST_AT_ONCE = 50_000;

// Plain text, the first part of it where it is very long.
export function Plain({ text }) {
  const [isWhole, setWhole] = useState(false);
  const isLong = text.length > MOST_AT_ONCE && !isWhole;
  const rest = text.length - MOST_AT_ONCE;
  return html`<div class="plain" dir="auto">${visible(isLong ? text.slice(0, MOST_AT_ONCE) : text)}</div>
    ${isLong && html`<button type="button" onClick=${() => setWhole(true)}>
      Show ${rest.toLocaleString()} more characters
    </button>`}`;
}
