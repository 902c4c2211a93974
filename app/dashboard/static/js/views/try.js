// Ask an engine: images, arrays or random numbers in, the answer drawn.

import { get, send } from "../api.js";
import { bars, histogram, stack } from "../charts.js";
import { dropZone } from "../drop.js";
import { attempt } from "../dialogs.js";
import { button, card, empty, h, problemBox, replace } from "../dom.js";
import { engineLink, path, warmBadge } from "../engines.js";
import { exampleImages, file, imageUrl } from "../example.js";
import { ms, number, percent, quantile, shape } from "../format.js";
import { randomInputs } from "../tensors.js";

const ARRAYS = { npy: "application/x-npy", npz: "application/x-npz", json: "application/json" };
const REPEATS = 100;
const ANSWERS_MAX = 20; // shown at once

export const title = (ref) => (ref ? `Try ${ref}` : "Try it");

export async function show(place, { argument: ref, signal }) {
  const { engines } = await get("/engines?limit=500", { signal });
  if (!engines.length) {
    place.append(h("h1", {}, "Try it"), empty("There is no engine to try yet.", h("a", { class: "button primary", href: "#/" }, "Build the example")));
    return;
  }
  const engine = ref ? await get(path(ref), { signal }) : engines[0];
  const select = h("select", { id: "engine", onchange: () => { location.hash = `#/try/${encodeURIComponent(select.value)}`; } },
    ...engines.map((item) => h("option", { value: item.ref, selected: item.ref === engine.ref }, item.ref)));
  const bench = new Bench(engine, signal);
  place.append(
    h("div", { class: "title" }, h("h1", {}, "Try it"), h("p", { class: "field inline" }, h("label", { for: "engine" }, "Engine"), select)),
    h("p", { class: "muted" }, engineLink(engine.ref), " takes ", engine.signature.inputs.map((spec) => `${spec.name} ${spec.dtype} ${shape(spec.shape)}`).join(", "), " ", bench.state),
    ...(await bench.inputs()), bench.measured, bench.answers);
}

class Bench {
  constructor(engine, signal) {
    [this.engine, this.signal, this.last] = [engine, signal, null];
    this.answers = h("div", { class: "answers", "aria-live": "polite" });
    this.measured = h("div");
    this.state = h("span", {}, warmBadge(engine));
  }

  async inputs() {
    const takesImages = this.engine.preprocess !== null;
    const { zone } = dropZone("input", takesImages ? "An image" : "An array", (files) => this.askAll(files),
      { multiple: true, accept: takesImages ? "image/*,.npy,.npz,.json" : ".npy,.npz,.json" });
    const measure = button(`Measure ${REPEATS} times`, () => attempt(measure, () => this.measure()), { disabled: true, title: "Sends the last input again and again, one after another" });
    this.measureButton = measure;
    const random = button("Random input", () => attempt(random, async () => this.ask("random numbers", randomInputs(this.engine.signature), "application/json")));
    const actions = h("p", { class: "actions" }, random, measure);
    return [zone, ...(await this.examples()), actions];
  }

  async examples() {
    const images = this.engine.preprocess ? await exampleImages(this.engine) : [];
    if (!images.length) return [];
    return [h("ul", { class: "thumbnails", "aria-label": "Images of the example" }, ...images.map((name) => h("li", {},
      h("button", { type: "button", class: "image", "aria-label": `Ask with ${name}`, onclick: async () => this.ask(name, await file(name), "image/png") },
        h("img", { src: imageUrl(name), alt: "", width: 48, height: 48 })))))];
  }

  async askAll(files) {
    for (const one of files.slice(0, ANSWERS_MAX)) {
      const suffix = one.name.split(".").at(-1).toLowerCase();
      await this.ask(one.name, one, ARRAYS[suffix] ?? (one.type || "application/octet-stream"));
    }
  }

  async ask(name, body, kind) {
    const place = h("section", { class: "card answer" }, h("p", { class: "muted" }, `Asking with ${name}…`));
    this.answers.prepend(place);
    while (this.answers.children.length > ANSWERS_MAX) this.answers.lastChild.remove();
    try {
      const answer = await this.infer(body, kind);
      this.last = [body, kind];
      this.measureButton.disabled = false;
      replace(this.state, warmBadge({ warm: { state: "ready" } })); // it has just answered
      replace(place, ...answered(name, kind.startsWith("image/") ? body : null, answer));
    } catch (problem) {
      replace(place, h("h2", {}, name), problemBox(problem));
    }
  }

  infer(body, kind) {
    return send("POST", `/infer/${encodeURIComponent(this.engine.ref)}?top=5`, { body, headers: { "Content-Type": kind }, signal: this.signal });
  }

  async measure() {
    const [body, kind] = this.last;
    const [total, compute] = [[], []];
    for (let count = 0; count < REPEATS && !this.signal.aborted; count += 1) {
      const { timings_ms: timings } = await this.infer(body, kind);
      total.push(timings.total);
      compute.push(timings.compute);
      if (count % 10 === 9) replace(this.measured, latencies(total, compute));
    }
  }
}

function latencies(total, compute) {
  const plot = (name, values) => {
    const sorted = [...values].sort((a, b) => a - b);
    const marks = [{ label: "p50", value: quantile(sorted, 0.5) }, { label: "p99", value: quantile(sorted, 0.99) }];
    return h("div", {}, h("h3", {}, name), histogram(name, values, ms, { marks, cap: 1.2 * quantile(sorted, 0.95) }));
  };
  return card(`Latency of ${total.length} requests, on the device`, h("div", { class: "columns" }, plot("In the engine", compute), plot("In all", total)));
}

function answered(name, image, answer) {
  const parts = Object.entries(answer.timings_ms).filter(([key]) => key !== "total")
    .map(([label, value]) => ({ label, value, text: ms(value) }));
  return [
    h("div", { class: "asked" }, image && picture(image, name), h("h2", {}, name)),
    ...(answer.predictions ?? []).map((row) => bars("Best classes", row.map((item, index) => ({
      label: item.label ?? `class ${item.index}`, value: item.probability ?? 0, text: percent(item.probability), tone: index ? "" : "good" })), 1)),
    ...Object.entries(answer.outputs ?? {}).map(([output, tensor]) => summary(output, tensor)),
    h("h3", {}, `${ms(answer.timings_ms.total)} on the device`),
    stack("Where the time went", parts),
  ];
}

function picture(image, name) {
  const url = URL.createObjectURL(image);
  return h("img", { src: url, alt: name, class: "asked-image", onload: () => URL.revokeObjectURL(url), onerror: () => URL.revokeObjectURL(url) });
}

function summary(name, { shape: lengths, dtype, data }) {
  const values = [data].flat(Infinity).map(Number);
  const finite = values.filter(Number.isFinite);
  const mean = finite.reduce((sum, value) => sum + value, 0) / (finite.length || 1);
  return h("div", {},
    h("h3", {}, name, " ", h("span", { class: "muted" }, `${dtype} ${shape(lengths)}`)),
    finite.length > 1 && histogram(name, finite, number, { marks: [{ label: "mean", value: mean }] }),
    h("p", { class: "values" }, values.slice(0, 12).map(number).join("  "), values.length > 12 && ` … ${values.length.toLocaleString()} values`));
}
