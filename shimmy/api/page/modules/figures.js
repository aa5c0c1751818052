// Numbers as people read them.
const UNITS = ["bytes", "KB", "MB", "GB", "TB"];

export function bytes(n) {
  let unit = 0;
  for (; n >= 1000 && unit < UNITS.length - 1; unit += 1) n /= 1000;
  return `${unit && n < 100 ? n.toFixed(1) : Math.round(n)} ${UNITS[unit]}`;
}

export function count(n) {
  for (const [size, letter] of [[1e9, "B"], [1e6, "M"], [1e3, "K"]]) {
    if (n >= size) return `${(n / size).toFixed(n < 10 * size ? 1 : 0)}${letter}`;
  }
  return String(n);
}

export function seconds(s) {
  if (s < 1) return `${Math.round(1000 * s)} ms`;
  if (s < 120) return `${s.toFixed(s < 10 ? 1 : 0)} s`;
  return s < 7200 ? `${Math.round(s / 60)} min` : `${Math.round(s / 3600)} h`;
}

// A place in a queue, 1 for the next.
export function placeIn(place) {
  return place > 1 ? `number ${place} in the queue` : "the next";
}

export function clock(unixSeconds) {
  return new Date(1000 * unixSeconds).toLocaleTimeString();
}
