// Published engines.

import { get, poll } from "../api.js";
import { button, empty, h, problemBox, replace, table } from "../dom.js";
import { accuracyText, deleteButton, engineActions, engineLink, precisionBadge, tryLink, warmBadge } from "../engines.js";
import { bytes, ms } from "../format.js";

const HEADS = ["Engine", "Precision", "Accuracy", "p50", "p99", "Size", "State", ""];

export const title = () => "Engines";

export async function show(place, { signal }) {
  const memory = h("p", { class: "muted" });
  const list = h("div");
  let polling = new AbortController();
  const restart = () => {
    polling.abort();
    polling = new AbortController();
    signal.addEventListener("abort", () => polling.abort());
    poll("/engines?limit=50", 2000, polling.signal, (page) => {
      replace(memory, `Warm engines use ${bytes(page.memory.used_bytes)} of ${bytes(page.memory.budget_bytes)}.`);
      showPage(list, page, restart);
    }, (problem) => problem && replace(list, problemBox(problem)));
  };
  place.append(h("div", { class: "title" }, h("h1", {}, "Engines"), memory), list);
  restart();
}

function showPage(list, page, again) {
  if (!page.engines.length) {
    replace(list, empty("No engine yet.", h("a", { class: "button primary", href: "#/build" }, "Build one")));
    return;
  }
  const more = page.next && button("Show older ones", async () => {
    const older = await get(`/engines?limit=50&after=${encodeURIComponent(page.next)}`);
    showPage(list, { ...older, engines: [...page.engines, ...older.engines] }, again);
  }, { "data-key": `more-${page.next}` });
  replace(list, table("Engines", HEADS, page.engines.map((engine) => row(engine, again))), more);
}

function row(engine, again) {
  return [
    engineLink(engine.ref), precisionBadge(engine), accuracyText(engine.accuracy), ms(engine.latency.p50_ms),
    ms(engine.latency.p99_ms), bytes(engine.size_bytes), warmBadge(engine),
    h("span", { class: "actions tight" }, tryLink(engine.ref), ...engineActions(engine, again), deleteButton(engine, again)),
  ];
}
