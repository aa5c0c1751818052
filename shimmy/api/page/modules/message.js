// One message on the screen, with all that can be done with it.
import { Component } from "preact";
import { useState } from "preact-hooks";
import { answerAgain, askInstead, giveResults, goOn, showVersion } from "./chat_state.js";
import { Code } from "./code.js";
import { seconds } from "./figures.js";
import { html } from "./html.js";
import { Markdown } from "./markdown.js";
import { isWriting, stop } from "./reply.js";
import { CopyButton, Plain } from "./text.js";
import { Tokens } from "./tokens.js";

// Drawn again only when there is something new: a conversation may be long.
export class Message extends Component {
  shouldComponentUpdate(next, state) {
    const { message, siblings, version, waiting, isLast } = this.props;
    return (
      state !== this.state || message !== next.message || siblings.length !== next.siblings.length ||
      version !== next.version || waiting !== next.waiting || isLast !== next.isLast || next.isWriting !== this.props.isWriting
    );
  }
  render({ message, ...rest }) {
    const View = { user: Question, assistant: Reply, tool: Result }[message.role];
    return html`<${View} message=${message} ...${rest} />`;
  }
}

function Versions({ message, siblings }) {
  if (siblings.length < 2) return null;
  const index = siblings.indexOf(message);
  const step = (by) => () => showVersion(siblings[index + by]);
  return html`<span class="versions" role="group" aria-label="Versions">
    <button type="button" class="quiet" aria-label="Version before" disabled=${index === 0} onClick=${step(-1)}>‹</button>
    <span>${index + 1} of ${siblings.length}</span>
    <button type="button" class="quiet" aria-label="Next version" disabled=${index === siblings.length - 1}
      onClick=${step(1)}>›</button>
  </span>`;
}

function Question({ message, siblings }) {
  const [draft, setDraft] = useState(null);
  if (draft !== null) {
    const submit = (event) => {
      event.preventDefault();
      setDraft(null);
      askInstead(message, draft);
    };
    return html`<article class="question" aria-label="You">
      <form onSubmit=${submit}>
        <textarea aria-label="Your message" rows="4" value=${draft} onInput=${(event) => setDraft(event.target.value)}
          onKeyDown=${(event) => event.key === "Escape" && setDraft(null)} ref=${(area) => area?.focus()}></textarea>
        <div class="bar">
          <button type="submit" class="main" disabled=${!draft.trim()}>Send</button>
          <button type="button" onClick=${() => setDraft(null)}>Cancel</button>
        </div>
      </form>
    </article>`;
  }
  return html`<article class="question" aria-label="You">
    <${Plain} text=${message.content} />
    <div class="bar">
      <${Versions} message=${message} siblings=${siblings} />
      <button type="button" class="quiet" onClick=${() => setDraft(message.content)}>Edit</button>
      <${CopyButton} text=${message.content} what="message" />
    </div>
  </article>`;
}

function Result({ message }) {
  return html`<article class="result" aria-label="Result of a tool">
    <details><summary>Result of ${message.name || "a tool"}</summary><${Plain} text=${message.content} /></details>
  </article>`;
}

function Reply({ message, siblings, waiting, isLast }) {
  const [hasTokens, showTokens] = useState(false);
  const isBusy = isWriting(message);
  const isBroken = !isBusy && (message.error || !message.finish);
  return html`<article class="reply" aria-label=${`Reply of ${message.model}`} aria-busy=${isBusy}>
    <p class="who">${message.model}</p>
    ${message.reasoning && html`<details class="reasoning" open=${isBusy && !message.content}>
      <summary>Reasoning</summary><${Plain} text=${message.reasoning} />
    </details>`}
    ${hasTokens && message.tokens ? html`<${Tokens} message=${message} />` : html`<${Markdown} text=${message.content} />`}
    ${message.calls?.map((call) => html`<${Call} call=${call} />`)}
    ${isBusy && !message.content && !message.reasoning && html`<p class="soft waiting">${waiting}</p>`}
    ${isBroken && html`<${Broken} message=${message} />`}
    ${message.warnings?.map((warning) => html`<p class="soft">${warning}</p>`)}
    ${isLast && message.calls?.length > 0 && message.finish === "tool_calls" && html`<${Results} message=${message} />`}
    <div class="bar">
      <${Versions} message=${message} siblings=${siblings} />
      ${isBusy && html`<button type="button" onClick=${() => stop(message)}>Stop</button>`}
      ${!isBusy && html`
        <button type="button" class="quiet" onClick=${() => answerAgain(message)}>Regenerate</button>
        <${CopyButton} text=${message.content} what="reply" />
        ${message.content && ["stopped", "length"].includes(message.finish) && html`
          <button type="button" class="quiet" onClick=${() => goOn(message)}>Go on</button>`}
        ${message.tokens && html`<button type="button" class="quiet" aria-pressed=${hasTokens}
          onClick=${() => showTokens(!hasTokens)}>Tokens</button>`}`}
      <${Figures} message=${message} />
    </div>
  </article>`;
}

// Says that a reply has no end, and offers one.
function Broken({ message }) {
  return html`<div class="trouble" role="alert">
    <p>${message.error ?? "This reply was interrupted."} ${message.content && "What was written is kept."}</p>
    ${message.content
      ? html`<button type="button" class="main" onClick=${() => goOn(message)}>Go on</button>`
      : html`<button type="button" class="main" onClick=${() => goOn(message)}>Try again</button>`}
  </div>`;
}

function Call({ call }) {
  let text = call.arguments;
  try {
    text = JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    // It is still being written, or no JSON: it is shown as it is.
  }
  return html`<div class="call"><p>Calls <strong>${call.name}</strong></p><${Code} text=${text} language="json" /></div>`;
}

function Results({ message }) {
  const [texts, setTexts] = useState(message.calls.map(() => ""));
  const submit = (event) => {
    event.preventDefault();
    giveResults(message, texts);
  };
  return html`<form onSubmit=${submit}>
    ${message.calls.map((call, index) => html`<label>Result of ${call.name}
      <textarea rows="2" value=${texts[index]} onInput=${(event) => setTexts(texts.with(index, event.target.value))} />
    </label>`)}
    <button type="submit">Give to the model</button>
  </form>`;
}

function Figures({ message }) {
  const { firstS, nTokens, perSecond, nPrompt, nCached, totalS } = message.figures ?? {};
  const parts = [
    nTokens !== undefined && `${nTokens} tokens`,
    perSecond > 0 && `${perSecond.toFixed(perSecond < 10 ? 1 : 0)} tokens/s`,
    firstS !== undefined && `first token after ${seconds(firstS)}`,
    totalS !== undefined && nTokens === undefined && `${seconds(totalS)} in all`,
    nPrompt !== undefined && `prompt of ${nPrompt}${nCached ? `, ${nCached} cached` : ""}`,
    message.finish === "length" && "cut off at the limit",
    message.finish === "stopped" && "stopped",
  ];
  const said = parts.filter(Boolean).join(" · ");
  return said && html`<span class="soft figures">${said}</span>`;
}
