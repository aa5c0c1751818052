// A block of code with its colours. Knows which texts would keep the highlighter busy for long.
import bash from "../vendored/highlight-bash.js";
import c from "../vendored/highlight-c.js";
import css from "../vendored/highlight-css.js";
import go from "../vendored/highlight-go.js";
import js from "../vendored/highlight-js.js";
import json from "../vendored/highlight-json.js";
import py from "../vendored/highlight-py.js";
import rs from "../vendored/highlight-rs.js";
import xml from "../vendored/highlight-xml.js";
import yaml from "../vendored/highlight-yaml.js";
import { tokenizeWith } from "../vendored/highlight-tokenize.js";
import { html } from "./html.js";
import { CopyButton, visible } from "./text.js";

const languages = { bash, c, css, go, js, json, py, rs, xml, yaml };
const ALIASES = {
  python: "py", python3: "py", javascript: "js", typescript: "js", ts: "js", jsx: "js", tsx: "js", mjs: "js",
  sh: "bash", shell: "bash", zsh: "bash", console: "bash", cpp: "c", "c++": "c", h: "c", cs: "c", csharp: "c",
  java: "c", kotlin: "c", html: "xml", svg: "xml", rust: "rs", golang: "go", yml: "yaml", jsonc: "json", scss: "css",
};
// Its expressions take quadratic time within a line and within white space.
const SLOW = /[^\n]{600}|\s{200}/;
const MOST_CHARACTERS = 30_000;

function parts(text, language) {
  const known = Object.hasOwn(ALIASES, language) ? ALIASES[language] : language;
  if (!Object.hasOwn(languages, known) || text.length > MOST_CHARACTERS || SLOW.test(text)) return visible(text);
  const found = [];
  tokenizeWith(text, known, (part, type) => {
    if (part) found.push(type ? html`<span class=${"hl-" + type}>${visible(part)}</span>` : visible(part));
  }, { languages });
  return found;
}

export function Code({ text, language }) {
  return html`<div class="code">
    <div class="bar"><span>${language || "text"}</span><${CopyButton} text=${text} what="code" /></div>
    <pre tabindex="0" dir="ltr"><code>${parts(text, language.toLowerCase())}</code></pre>
  </div>`;
}
