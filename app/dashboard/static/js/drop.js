// A place to drop files on. It is a file input, so a keyboard and a screen reader find it too.

import { h } from "./dom.js";
import { bytes } from "./format.js";

/** `onfiles` is told the chosen files; `props` go to the input. */
export function dropZone(id, text, onfiles, props = {}) {
  const chosen = h("span", { class: "chosen" });
  const input = h("input", { type: "file", id, class: "unseen", ...props });
  const zone = h("label", { class: "drop", for: id }, input, h("strong", {}, text), h("span", { class: "muted" }, "Drop it here, or choose a file"), chosen);
  input.addEventListener("change", () => {
    chosen.textContent = [...input.files].map((file) => `${file.name}, ${bytes(file.size)}`).join("; ");
    zone.classList.toggle("filled", input.files.length > 0);
    onfiles([...input.files]);
  });
  zone.addEventListener("dragover", () => zone.classList.add("over"));
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    zone.classList.remove("over");
    if (!event.dataTransfer.files.length) return;
    input.files = event.dataTransfer.files;
    input.dispatchEvent(new Event("change"));
  });
  return { zone, input };
}
