// What a person sets for a conversation; where a box is empty, the model's own value stands in it.
import { useEffect, useState } from "preact-hooks";
import { choose } from "./chat_state.js";
import { html } from "./html.js";
import { EFFORTS, NUMBERS } from "./parameters.js";
import { json, modelPath } from "./server_api.js";

function useDefaults(model) {
  const [found, setFound] = useState({});
  useEffect(() => {
    let isWanted = true;
    setFound({});
    if (model) json(modelPath(model, "status")).then((status) => isWanted && setFound(status.defaults ?? {}), () => {});
    return () => (isWanted = false);
  }, [model]);
  return found;
}

export function Settings({ conversation, model }) {
  const defaults = useDefaults(model);
  const { settings } = conversation;
  const set = (name) => (event) => choose({ settings: { [name]: event.target.value } });
  const area = (name, label, rows, hint) => html`<label>${label}
    <textarea rows=${rows} value=${settings[name] ?? ""} placeholder=${hint} spellcheck=${name === "system"}
      onInput=${set(name)} />
  </label>`;
  return html`<div class="settings">
    ${area("system", "System prompt", 3, defaults.system || "None")}
    <div class="numbers">${NUMBERS.map(([name, label, about]) => html`<label title=${about}>${label}
      <input inputmode="decimal" value=${settings[name] ?? ""} placeholder=${defaults[name] ?? ""} onInput=${set(name)} />
    </label>`)}
      <label title="For models that reason">Reasoning
        <select value=${settings.effort ?? ""} onChange=${set("effort")}>
          <option value="">as the model does</option>
          ${EFFORTS.map((effort) => html`<option>${effort}</option>`)}
        </select>
      </label>
    </div>
    ${area("stop", "Stop at (one text a line)", 1, (defaults.stop ?? []).join(" "))}
    ${area("schema", "JSON Schema of the reply", 2, '{"type": "object", …}')}
    ${area("tools", "Tools (a list as in the OpenAI API)", 2, '[{"type": "function", "function": {"name": …}}]')}
    <label class="check"><input type="checkbox" checked=${Boolean(settings.probabilities)}
      onChange=${(event) => choose({ settings: { probabilities: event.target.checked } })} />
      Record the probabilities of tokens
    </label>
  </div>`;
}
