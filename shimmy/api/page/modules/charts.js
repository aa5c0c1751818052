// Small charts that are drawn again with every figure. What they show is said in words, too.
import { seconds } from "./figures.js";
import { html } from "./html.js";

const HEIGHT = 60;
const WIDTH = 240;

export function Line({ values, label }) {
  const most = Math.max(...values, 1);
  const x = (index) => (WIDTH * index) / Math.max(values.length - 1, 1);
  const points = values.map((value, index) => `${x(index).toFixed(1)},${(HEIGHT - (HEIGHT * value) / most).toFixed(1)}`);
  return html`<svg class="chart" viewBox=${`0 -2 ${WIDTH} ${HEIGHT + 4}`} role="img" aria-label=${label}>
    <polyline points=${points.join(" ")} />
  </svg>`;
}

export function Histogram({ title, buckets }) {
  const n = buckets.reduce((sum, bucket) => sum + bucket.n, 0);
  const most = Math.max(...buckets.map((bucket) => bucket.n), 1);
  const width = WIDTH / buckets.length;
  const said = (bound) => (Number.isFinite(bound) ? `up to ${seconds(bound)}` : "longer");
  const words = buckets.filter((bucket) => bucket.n).map((bucket) => `${said(bucket.bound)}: ${bucket.n}`);
  return html`<figure class="card">
    <figcaption>${title} <span class="soft">${n} in all</span></figcaption>
    <svg class="chart" viewBox=${`0 -2 ${WIDTH} ${HEIGHT + 14}`} role="img" aria-label=${`${title}: ${words.join(", ") || "none yet"}`}>
      ${buckets.map(({ bound, n: own }, index) => {
        const height = (HEIGHT * own) / most;
        return html`<g><title>${said(bound)}: ${own}</title>
          <rect x=${index * width + 1} y=${HEIGHT - height} width=${width - 2} height=${Math.max(height, 0.5)} />
          <text x=${index * width + width / 2} y=${HEIGHT + 10}>${Number.isFinite(bound) ? bound : "∞"}</text></g>`;
      })}
    </svg>
  </figure>`;
}
