// What a build with precision auto compared.

import { bars } from "./charts.js";
import { card, h } from "./dom.js";
import { accuracyText, candidateName } from "./engines.js";
import { bytes, ms } from "./format.js";

/** `published` is the engine that came of it; null where it is deleted. */
export function candidatesCard(candidates, published) {
  if (!candidates?.length) return null;
  const isPublished = (candidate) => candidate.accepted && candidate.precision === published?.precision && candidate.int8_method === published.int8_method;
  const items = candidates.map((candidate) => ({
    label: candidateName(candidate),
    value: candidate.latency?.p50_ms ?? 0,
    text: candidate.latency ? ms(candidate.latency.p50_ms) : "not built",
    tone: !candidate.accepted ? "bad" : isPublished(candidate) ? "good" : "",
    note: note(candidate, isPublished(candidate)),
  }));
  return card("What auto compared",
    h("p", { class: "muted" }, "Median time of one run, shorter is better. The fastest within its tolerance is published; where the difference is noise, the most exact."),
    bars("Median latency by precision", items));
}

function note(candidate, isPublished) {
  const parts = [candidate.accuracy && accuracyText(candidate.accuracy), candidate.size_bytes && bytes(candidate.size_bytes)];
  const verdict = !candidate.accepted ? `refused: ${candidate.reason}` : isPublished ? "published" : "within tolerance";
  return [verdict, ...parts].filter(Boolean).join(" · ");
}
