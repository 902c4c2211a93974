// Small plots. Each says in words what it shows.

import { h, svg } from "./dom.js";

/** Horizontal bars: {label, value, text, note, tone}; the longest fills the width, or `full` does. */
export function bars(name, items, full = Math.max(...items.map((item) => item.value))) {
  return h("ul", { class: "bars", "aria-label": name }, ...items.map((item) => {
    const fill = h("span", { class: `fill ${item.tone ?? ""}` });
    fill.style.width = `${full > 0 ? Math.max(0.5, (100 * item.value) / full) : 0}%`;
    return h("li", {},
      h("span", { class: "bar-label" }, item.label),
      h("span", { class: "track", "aria-hidden": "true" }, fill),
      h("span", { class: "bar-text" }, item.text),
      item.note && h("span", { class: "bar-note" }, item.note));
  }));
}

/** Parts of a whole, one beside the other: {label, value, text}. */
export function stack(name, parts) {
  const whole = parts.reduce((sum, part) => sum + part.value, 0) || 1;
  const strip = h("div", { class: "stack", "aria-hidden": "true" }, ...parts.map((part, index) => {
    const piece = h("span", { class: `tone${index % 5}` });
    piece.style.flexGrow = String(part.value / whole);
    return piece;
  }));
  const key = h("ul", { class: "key", "aria-label": name }, ...parts.map((part, index) =>
    h("li", {}, h("span", { class: `dot tone${index % 5}`, "aria-hidden": "true" }), `${part.label} ${part.text}`)));
  return h("div", {}, strip, key);
}

/** How often values fall where, in equal steps from the least to the greatest; what is above `cap` is in the last one. */
export function histogram(name, values, format, { marks = [], cap = Infinity, steps = 24 } = {}) {
  const [low, highest] = values.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
  const high = Math.min(cap, highest);
  const width = (high - low) / steps || 1;
  const counts = new Array(steps).fill(0);
  for (const value of values) counts[Math.min(steps - 1, Math.floor((value - low) / width))] += 1;
  const top = Math.max(...counts);
  const columns = counts.map((count, index) =>
    svg("rect", { class: "column", x: index * 10 + 1, width: 8, y: 60 - (58 * count) / top, height: (58 * count) / top, rx: 1 }));
  const lines = marks.map((mark) => {
    const x = Math.min(239, Math.max(1, (10 * (mark.value - low)) / width));
    return svg("line", { class: "mark", x1: x, x2: x, y1: 0, y2: 60 });
  });
  return h("figure", { class: "plot" },
    svg("svg", { viewBox: "0 0 240 60", preserveAspectRatio: "none", role: "img", "aria-label": `${name}: from ${format(low)} to ${format(highest)}` }, ...columns, ...lines),
    h("figcaption", {}, h("span", {}, format(low)), h("span", {}, marks.map((mark) => `${mark.label} ${format(mark.value)}`).join(" · ")), h("span", {}, high < highest ? `≥ ${format(high)}` : format(high))));
}

/** A value over time: points are [ms, value]. */
export function line(name, points, { format, low = 0, high }) {
  const values = points.map(([, value]) => value);
  const top = high ?? Math.max(...values, low + 1);
  const [start, end] = [points[0][0], Math.max(points.at(-1)[0], points[0][0] + 1)];
  const at = ([time, value]) => `${((time - start) / (end - start)) * 240},${60 - (58 * (value - low)) / (top - low || 1)}`;
  const path = points.map(at).join(" ");
  return h("figure", { class: "plot" },
    svg("svg", { viewBox: "0 0 240 62", preserveAspectRatio: "none", role: "img", "aria-label": `${name}: ${format(values.at(-1))} now, between ${format(Math.min(...values))} and ${format(Math.max(...values))}` },
      svg("polygon", { class: "area", points: `0,62 ${path} 240,62` }),
      svg("polyline", { class: "curve", points: path })),
    h("figcaption", {}, h("span", {}, points.length > 1 ? `${Math.round((end - start) / 1000)} s ago` : ""), h("span", {}, "now")));
}
