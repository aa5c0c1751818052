// Markdown of a model as elements. No text of it ever becomes markup of the page, no address is loaded, and a text that
// would take long to read is shown as it is.
import { Component } from "preact";
import { Lexer, Marked } from "../vendored/marked.js";
import { Code } from "./code.js";
import { html } from "./html.js";
import { Plain, visible } from "./text.js";

const MOST_CHARACTERS = 100_000;
const MOST_IN_PARAGRAPH = 4000; // reading what stands within one takes quadratic time
const MOST_MS = 100; // for all paragraphs of a text
const MOST_CELLS = 5000;
// Blocks in blocks in blocks: thirty on one line, or a list that stands far to the right.
const DEEP = /^(?:[ \t]*(?:>|[-*+][ \t]|\d{1,9}[.)][ \t])){30}|^[ \t]{100,}(?:[-*+>]|\d)/m;

const MATHS = /^(?:\$\$[^$]+\$\$|\\\[[^]+?\\\]|\\\([^]+?\\\)|\$(?![\s$])[^$\n]*[^\s$\\]\$(?!\d))/;
const ADDRESS = /^https?:\/\/[^\s<>"'`()[\]]{1,2000}[^\s<>"'`()[\].,;:!?*_~]/;

function extension(name, first, pattern) {
  return {
    name,
    level: "inline",
    start: (text) => {
      const found = text.search(first);
      return found < 0 ? undefined : found;
    },
    tokenizer: (text) => {
      const found = pattern.exec(text);
      return found ? { type: name, raw: found[0], text: found[0] } : undefined;
    },
  };
}

const marked = new Marked({ gfm: true });
marked.use({
  extensions: [extension("maths", /\$|\\[[(]/, MATHS), extension("address", /https?:/, ADDRESS)],
  tokenizer: { url() {} },
});

// The blocks of a text, or null for one that is shown as it is.
function read(text) {
  if (text.length > MOST_CHARACTERS || DEEP.test(text)) return null;
  const lexer = new Lexer(marked.defaults);
  const started = performance.now();
  try {
    lexer.blockTokens(text.replace(/\r\n?/g, "\n"), lexer.tokens);
    for (const { src, tokens } of lexer.inlineQueue) {
      const isSlow = src.length > MOST_IN_PARAGRAPH || performance.now() - started > MOST_MS;
      if (isSlow) tokens.push({ type: "escape", text: src });
      else lexer.inlineTokens(src, tokens);
    }
    return lexer.tokens;
  } catch {
    return null;
  }
}

const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", "#39": "'", nbsp: "\u00a0" };

function decoded(text) {
  return visible(text.replace(/&(amp|lt|gt|quot|apos|#39|nbsp);/g, (_, name) => ENTITIES[name]));
}

function Link({ href, children }) {
  let address;
  try {
    address = new URL(href);
  } catch {
    address = null;
  }
  if (!["http:", "https:", "mailto:"].includes(address?.protocol)) return html`<span>${children}</span>`;
  return html`<a href=${address.href} target="_blank" rel="noopener noreferrer nofollow">${children}</a>`;
}

const INLINE = {
  text: (token) => (token.tokens ? within(token) : decoded(token.text)),
  escape: (token) => visible(token.text),
  html: (token) => visible(token.text),
  strong: (token) => html`<strong>${within(token)}</strong>`,
  em: (token) => html`<em>${within(token)}</em>`,
  del: (token) => html`<del>${within(token)}</del>`,
  codespan: (token) => html`<code dir="ltr">${visible(token.text)}</code>`,
  maths: (token) => html`<code class="maths" dir="ltr">${visible(token.text)}</code>`,
  br: () => html`<br />`,
  checkbox: (token) => (token.checked ? "☑ " : "☐ "),
  link: (token) => html`<${Link} href=${token.href}>${within(token)}<//>`,
  address: (token) => html`<${Link} href=${token.text}>${visible(token.text)}<//>`,
  image: (token) => html`<${Link} href=${token.href}>[picture: ${visible(token.text || token.href)}]<//>`,
};

const BLOCKS = {
  space: () => null,
  def: () => null,
  hr: () => html`<hr />`,
  heading: (token) => html`<p class="heading" role="heading" aria-level=${Math.min(token.depth + 1, 6)} dir="auto">
    ${within(token)}
  </p>`,
  code: (token) => html`<${Code} text=${token.text} language=${(token.lang ?? "").split(/\s/)[0]} />`,
  blockquote: (token) => html`<blockquote>${token.tokens.map(block)}</blockquote>`,
  html: (token) => html`<p class="plain" dir="auto">${visible(token.text.trim())}</p>`,
  paragraph: (token) => html`<p dir="auto">${within(token)}</p>`,
  list: (token) => {
    const items = token.items.map((item) => html`<li dir="auto">${item.tokens.map(block)}</li>`);
    return token.ordered ? html`<ol start=${token.start}>${items}</ol>` : html`<ul>${items}</ul>`;
  },
  table: (token) => {
    if (token.header.length * (token.rows.length + 1) > MOST_CELLS) return html`<${Plain} text=${token.raw} />`;
    const cell = (tag) => (each) => html`<${tag} style=${{ textAlign: each.align ?? "start" }}>${within(each)}<//>`;
    return html`<div class="table" tabindex="0"><table>
      <thead><tr>${token.header.map(cell("th"))}</tr></thead>
      <tbody>${token.rows.map((row) => html`<tr>${row.map(cell("td"))}</tr>`)}</tbody>
    </table></div>`;
  },
};

function within(token) {
  return (token.tokens ?? []).map((each) => (INLINE[each.type] ?? INLINE.escape)(each));
}

function block(token) {
  return (BLOCKS[token.type] ?? INLINE[token.type] ?? INLINE.escape)(token);
}

// A block is drawn again only when its text has changed: of a reply that grows, the last one.
class Block extends Component {
  shouldComponentUpdate({ token }) {
    return token.raw !== this.props.token.raw;
  }
  render({ token }) {
    return block(token);
  }
}

export function Markdown({ text }) {
  const blocks = read(text);
  if (!blocks) return html`<${Plain} text=${text} />`;
  return html`<div class="markdown">${blocks.map((token, index) => html`<${Block} key=${index} token=${token} />`)}</div>`;
}
