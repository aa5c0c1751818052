// Reads Prometheus' text format: counters, gauges and histograms. Knows the names of none.

const LINE = /^([\w:]+)(?:\{(.*)\})? (\S+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

// { [name]: { help, type, samples: [{ labels, value }] } }; the parts of a histogram stand under its own name.
export function readMetrics(text) {
  const metrics = {};
  for (const line of text.split("\n")) {
    const [, about, name, rest] = /^# (HELP|TYPE) (\S+) (.*)$/.exec(line) ?? [];
    if (about) (metrics[name] ??= { samples: [] })[about.toLowerCase()] = rest;
    const [, full, labels = "", value] = LINE.exec(line) ?? [];
    if (!full) continue;
    const part = /_(bucket|sum|count)$/.exec(full);
    const own = part && metrics[full.slice(0, part.index)] ? full.slice(0, part.index) : full;
    const found = Object.fromEntries([...labels.matchAll(LABEL)].map(([, label, its]) => [label, its]));
    (metrics[own] ??= { samples: [] }).samples.push({ labels: found, part: part?.[1], value: Number(value) });
  }
  return metrics;
}

export function total(metric) {
  return (metric?.samples ?? []).reduce((sum, { value }) => sum + value, 0);
}

// The values of a metric by one of its labels: a Map.
export function byLabel(metric, name) {
  return new Map((metric?.samples ?? []).map(({ labels, value }) => [labels[name], value]));
}

// The buckets of a histogram, all labels together: [{ bound, n }], `n` those at or below it and above the one before.
export function buckets(metric) {
  const sums = new Map();
  for (const { labels, part, value } of metric.samples) {
    if (part === "bucket") sums.set(labels.le, (sums.get(labels.le) ?? 0) + value);
  }
  let before = 0;
  return [...sums].map(([bound, n]) => {
    const own = { bound: Number(bound.replace("+Inf", "Infinity")), n: n - before };
    before = n;
    return own;
  });
}
