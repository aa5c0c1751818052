// What a person sees who has no model yet.
import { html } from "./html.js";

export function FirstModel() {
  return html`<section class="card">
    <h1>No model yet</h1>
    <p>Shimmy serves GGUF files and SafeTensors folders. Put one into a folder that the server looks into (its options
      <code>--model-path</code> and <code>--model-dirs</code>; without them the caches of the Hugging Face hub, of LM
      Studio and of Ollama). It is found by itself, and this page goes on.</p>
  </section>`;
}
