// The tokens of a reply with their probabilities; a click on an alternative goes on from there.
import { useState } from "preact-hooks";
import { goOnFrom } from "./chat_state.js";
import { html } from "./html.js";
import { visible } from "./text.js";

const MOST_TOKENS = 2000;

function shown(text) {
  return visible(text).replaceAll("\n", "⏎") || "∅";
}

function percent(p) {
  return `${(100 * p).toFixed(p < 0.1 ? 1 : 0)} %`;
}

// The text of a reply before token `index` with another token behind it; null where that is not what was said.
function textUpTo(message, index, other) {
  const bytes = [...message.tokens.slice(0, index), other].flatMap((token) => token.bytes ?? []);
  const text = new TextDecoder().decode(new Uint8Array(bytes));
  const before = text.slice(0, text.length - other.text.length);
  return message.reasoning || text.endsWith("\ufffd") || !message.content.startsWith(before) ? null : text;
}

function Alternatives({ message, index }) {
  const token = message.tokens[index];
  return html`<div class="alternatives">
    <table>
      <caption>Token ${index + 1}: <code>${shown(token.text)}</code>, ${percent(token.p)}</caption>
      <tbody>${token.others.map((other) => {
        const text = textUpTo(message, index, other);
        const isSame = other.text === token.text;
        const go = () => goOnFrom(message, text, [...message.tokens.slice(0, index), { ...other, others: token.others }]);
        return html`<tr>
          <th scope="row"><code>${shown(other.text)}</code></th>
          <td><meter min="0" max="1" value=${other.p} aria-label="Probability"></meter> ${percent(other.p)}</td>
          <td>${!isSame && text && html`<button type="button" class="quiet" onClick=${go}>Go on from this</button>`}</td>
        </tr>`;
      })}</tbody>
    </table>
  </div>`;
}

export function Tokens({ message }) {
  const [chosen, choose] = useState(null);
  const tokens = message.tokens.slice(0, MOST_TOKENS);
  return html`<div class="tokens">
    <p class="soft">The paler a token, the less likely the model found it. Choose one to see the others.</p>
    <div role="group" aria-label="Tokens">${tokens.map((token, index) => html`<button type="button"
      class="token" style=${{ "--p": Math.round(100 * token.p) + "%" }} aria-pressed=${index === chosen}
      title=${token.others.map((other) => `${shown(other.text)}  ${percent(other.p)}`).join("\n")}
      onClick=${() => choose(index === chosen ? null : index)}>${shown(token.text)}</button>`)}</div>
    ${chosen !== null && chosen < tokens.length && html`<${Alternatives} message=${message} index=${chosen} />`}
  </div>`;
}
