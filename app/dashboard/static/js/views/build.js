// The form of a build. Its options, their help, choices and limits are the API's own description of them.

import { get, upload } from "../api.js";
import { dropZone } from "../drop.js";
import { button, card, h, problemBox, replace } from "../dom.js";
import { bytes, shortId } from "../format.js";
import { optionField, optionGroups, sentence } from "../options.js";

export const title = () => "Build";

export async function show(place, { signal }) {
  const [document_, models, calibrations] = await Promise.all([
    get("/openapi.json", { signal }), get("/models?limit=200", { signal }), get("/calibrations?limit=200", { signal })]);
  const { properties } = document_.paths["/jobs"].post.requestBody.content["multipart/form-data"].schema;
  place.append(new BuildForm(properties, models.models, calibrations.calibrations, signal).element);
}

class BuildForm {
  constructor(properties, models, calibrations, signal) {
    this.signal = signal;
    this.fields = {};
    const { name, precision, labels, model, calibration, model_id, calibration_id, options, ...others } = properties;
    this.model = source("model", "Network", model.description, models, () => this.suggestName());
    this.calibration = source("calibration", "Samples (optional)", calibration.description, calibrations, () => {});
    this.fault = h("div", { id: "fault" });
    this.submit = h("button", { class: "primary", id: "submit" }, "Build the engine");
    this.progress = h("div", { class: "progress", hidden: true });
    this.element = h("form", { class: "build", novalidate: true, onsubmit: (event) => { event.preventDefault(); this.send(); } },
      h("h1", {}, "Build an engine"),
      h("div", { class: "columns" }, card("", this.model.element), card("", this.calibration.element)),
      card("", h("div", { class: "fields" }, this.option("name", { ...name, required: true }), this.option("precision", precision), this.labels(labels))),
      h("section", { class: "card options", "aria-label": "Options" }, ...optionGroups(others).map(([title, group]) => h("details", {}, h("summary", {}, title),
        h("div", { class: "fields" }, ...Object.entries(group).map(([key, field]) => this.option(key, field)))))),
      this.fault, this.progress, h("p", { class: "actions" }, this.submit));
  }

  option(name, description) {
    this.fields[name] = optionField(name, description);
    return this.fields[name].element;
  }

  labels(description) {
    const element = this.option("labels", { ...description, multiline: true });
    const { zone } = dropZone("labels-file", "A file of labels", async ([file]) => { if (file) this.fields.labels.input.value = await file.text(); }, { accept: ".txt,.csv,.json,.names" });
    zone.classList.add("small");
    element.append(zone);
    return element;
  }

  /** The file's name, as far as an engine can have it, unless the person has typed one. */
  suggestName() {
    const { input } = this.fields.name;
    const file = this.model.input.files[0];
    if (!file || (input.value && input.value !== this.suggested)) return;
    this.suggested = file.name.replace(/\.[^.]*$/, "").toLowerCase().replace(/[^a-z0-9._-]+/g, "-").replace(/^[^a-z0-9]+/, "").slice(0, 64);
    input.value = this.suggested;
  }

  form() {
    const form = new FormData(); // texts first: the device checks them before it stores a file
    for (const [name, field] of Object.entries(this.fields)) {
      const value = field.value();
      if (value !== null) form.set(name, value);
    }
    for (const part of [this.calibration, this.model]) {
      const [name, value] = part.value();
      if (value) form.set(name, value);
    }
    return form;
  }

  async send() {
    const cancelled = new AbortController();
    this.signal.addEventListener("abort", () => cancelled.abort());
    replace(this.fault);
    this.submit.disabled = true;
    const shown = this.showProgress(cancelled);
    try {
      const job = await upload("/jobs", this.form(), shown, cancelled.signal);
      location.hash = `#/jobs/${job.id}`;
    } catch (problem) {
      if (problem.name !== "AbortError") this.refuse(problem);
    } finally {
      this.submit.disabled = false;
      this.progress.hidden = true;
    }
  }

  showProgress(cancelled) {
    const meter = h("progress", { max: "1", value: 0, "aria-label": "Upload" });
    const text = h("span", { role: "status" }, "Sending…");
    const start = performance.now();
    this.progress.replaceChildren(meter, text, button("Cancel the upload", () => cancelled.abort()));
    this.progress.hidden = false;
    return (sent, whole) => {
      meter.value = whole ? sent / whole : 0;
      const rate = sent / Math.max(0.001, (performance.now() - start) / 1000);
      text.textContent = sent < whole ? `${bytes(sent)} of ${bytes(whole)}, ${bytes(rate)}/s` : "Sent; the device is checking it…";
    };
  }

  refuse(problem) {
    const box = problemBox(problem);
    replace(this.fault, box);
    box.focus();
    box.scrollIntoView({ block: "center" });
  }
}

/** A file to upload, or one that is stored already. */
function source(name, title, help, stored, onchange) {
  const { zone, input } = dropZone(name, title, () => { select.value = ""; onchange(); }, { "aria-describedby": `${name}-help` });
  const select = h("select", { id: `${name}-stored` }, h("option", { value: "" }, "none"),
    ...stored.map((item) => h("option", { value: item.id }, `${item.name} · ${bytes(item.size_bytes)} · ${shortId(item.id)}`)));
  const element = h("div", { class: "source" }, zone, h("p", { class: "help", id: `${name}-help` }, sentence(help)),
    stored.length > 0 && h("p", { class: "field inline" }, h("label", { for: select.id }, "or one stored before"), select));
  const value = () => (select.value ? [`${name}_id`, select.value] : [name, input.files[0]]);
  return { element, input, value };
}
