// What a person sees who has no model yet.
import { html } from "./html.js";
import { Pull, Suggestions } from "./pull.js";

// `refused` are entries of files that were found and cannot be served.
export function FirstModel({ refused = [] }) {
  return html`<section>
    <h1>No model yet</h1>
    ${refused.map(({ path, error }) => html`<p key=${path} class="trouble">${path} cannot be served: ${error}</p>`)}
    <p>Pull one of these, which fit this machine's memory, or any other:</p>
    <${Suggestions} />
    <${Pull} />
    <p>Or put a GGUF file or a SafeTensors folder where the server looks: in what <code>--model-path</code> names, else in
      the caches of the Hugging Face hub, LM Studio and Ollama. It is found by itself.</p>
  </section>`;
}
