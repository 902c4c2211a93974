// What several pages show of an engine, and what can be done to it.

import { hasKey, request, send } from "./api.js";
import { attempt, confirmed, toast } from "./dialogs.js";
import { badge, button, h } from "./dom.js";
import { bytes, percent } from "./format.js";

export const path = (ref) => `/engines/${encodeURIComponent(ref)}`;

export const engineLink = (ref) => h("a", { href: `#/engines/${encodeURIComponent(ref)}`, "data-key": `engine-${ref}` }, ref);

export const tryLink = (ref, props = {}) =>
  h("a", { href: `#/try/${encodeURIComponent(ref)}`, class: "button", "aria-label": `Try ${ref}`, "data-key": `try-${ref}`, ...props }, "Try it");

export function warmBadge(engine) {
  if (!engine.warm) return badge("cold");
  const text = engine.warm.state === "ready" ? "warm" : engine.warm.state;
  return badge(engine.warm.is_pinned ? `${text}, pinned` : text, engine.warm.state === "ready" ? "good" : "busy");
}

export const precisionBadge = (engine) =>
  badge(engine.precision + (engine.int8_method ? ` · ${engine.int8_method}` : ""), "accent");

/** The shortest honest word on how near the engine is to its source. */
export function accuracyText({ labelled, top1_agreement: top1, outputs, samples }) {
  if (labelled) return `${percent(labelled.engine)} right (source ${percent(labelled.source)})`;
  if (top1 != null) return `${percent(top1)} same answers`;
  if (!outputs.length) return samples ? "not comparable" : "not known";
  return `${Math.min(...outputs.map((output) => output.sqnr_db)).toFixed(0)} dB`;
}

export const candidateName = (candidate) => candidate.precision + (candidate.int8_method ? ` (${candidate.int8_method})` : "");

export function engineActions(engine, then) {
  const act = (text, what, props) => {
    const element = button(text, () => attempt(element, what).then(then), { "data-key": `${text}-${engine.ref}`, "aria-label": `${text} ${engine.ref}`, ...props });
    return element;
  };
  const load = (pin) => send("POST", `${path(engine.ref)}/load${pin ? "?pin=true" : ""}`);
  return [
    engine.warm ? act("Unload", () => send("POST", `${path(engine.ref)}/unload`)) : act("Load", () => load(false)),
    !engine.warm?.is_pinned && act("Pin", () => load(true), { title: "Load it, and keep it loaded until it is unloaded" }),
  ];
}

export function deleteButton(engine, then) {
  const element = button("Delete", async () => {
    if (!(await confirmed(`Delete ${engine.ref}?`, `Its file (${bytes(engine.size_bytes)}) is removed from the device, and requests to it fail. The network it was built from stays.`, "Delete it"))) return;
    const done = await attempt(element, async () => { await send("DELETE", path(engine.ref)); return true; });
    if (done) { toast(`${engine.ref} is deleted.`); then(); }
  }, { class: "quiet-danger", "data-key": `delete-${engine.ref}` });
  return element;
}

/** A plain link where no key is needed: the browser then writes a large file straight to disk. */
export function downloadLink(engine) {
  const where = `${path(engine.ref)}/file`;
  const name = `${engine.name}-${engine.version}.${engine.backend === "tensorrt" ? "trt" : "onnx"}`;
  if (!hasKey()) return h("a", { class: "button", href: where, download: name }, "Download");
  const element = button("Download", () => attempt(element, async () => {
    const url = URL.createObjectURL(await (await request(where)).blob());
    h("a", { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  }));
  return element;
}
