// One engine: what it proved, how fast it is, how it stands in memory.

import { get, poll } from "../api.js";
import { bars } from "../charts.js";
import { candidatesCard } from "../candidates.js";
import { badge, card, facts, h, problemBox, replace, table } from "../dom.js";
import { deleteButton, downloadLink, engineActions, path, precisionBadge, tryLink, warmBadge } from "../engines.js";
import { bytes, ms, number, percent, seconds, shape, shortId } from "../format.js";

const LABELS_SHOWN = 30;

export const title = (ref) => ref;

export async function show(place, { argument: ref, signal }) {
  const [head, body] = [h("div"), h("div")];
  place.append(head, body);
  const first = await get(path(ref), { signal });
  replace(body, ...sections(first, signal));
  const again = async () => replace(head, ...heading(await get(path(ref)), again));
  poll(path(ref), 2000, signal, (engine) => replace(head, ...heading(engine, again)), (problem) => problem && replace(head, problemBox(problem)));
}

function heading(engine, again) {
  return [
    h("div", { class: "title" },
      h("h1", {}, engine.ref, " ", precisionBadge(engine), " ", badge(engine.backend), " ", warmBadge(engine)),
      h("p", { class: "actions" }, tryLink(engine.ref, { class: "button primary" }), ...engineActions(engine, () => again().catch(() => {})),
        downloadLink(engine), deleteButton(engine, () => { location.hash = "#/engines"; }))),
    warmLine(engine.warm),
  ];
}

function warmLine(warm) {
  if (!warm) return h("p", { class: "muted" }, "Not in memory: the first request loads it.");
  return h("p", { class: "muted" }, `In memory: ${bytes(warm.device_bytes)}, ${warm.contexts} contexts, loaded in ${seconds(warm.load_s)};`
    + ` ${warm.requests} requests answered in ${warm.runs} runs.`);
}

function sections(engine, signal) {
  return [
    ...engine.warnings.map((warning) => h("p", { class: "notice" }, badge("warning", "bad"), " ", warning)),
    h("div", { class: "columns" }, accuracyCard(engine.accuracy), latencyCard(engine)),
    candidatesCard(engine.candidates, engine),
    h("div", { class: "columns" }, tensorsCard(engine), recipeCard(engine.preprocess)),
    engine.calibration && previewCard(engine, signal),
    builtCard(engine),
  ];
}

function accuracyCard(accuracy) {
  const { labelled } = accuracy;
  if (!accuracy.samples) return card("Accuracy against the source", h("p", { class: "muted" }, "Not known: it was uploaded as an engine, without a network to compare it with."));
  const shares = [
    labelled && { label: "Right, this engine", value: labelled.engine, text: percent(labelled.engine), tone: "good" },
    labelled && { label: "Right, the source", value: labelled.source, text: percent(labelled.source) },
    accuracy.top1_agreement != null && { label: "Same first class", value: accuracy.top1_agreement, text: percent(accuracy.top1_agreement), tone: "good" },
    accuracy.top5_agreement != null && { label: "Within first five", value: accuracy.top5_agreement, text: percent(accuracy.top5_agreement) },
  ].filter(Boolean);
  const from = accuracy.inputs === "random" ? "random inputs" : "samples that calibration never saw";
  return card("Accuracy against the source",
    h("p", { class: "muted" }, `${accuracy.samples} ${from}, compared with the network as uploaded, run by ${accuracy.reference}.`,
      labelled && ` ${labelled.samples} of them have a known class.`),
    shares.length > 0 && bars("Shares", shares, 1),
    table("Difference of each output", ["Output", "SQNR", "Cosine", "Largest difference"], accuracy.outputs.map((output) =>
      [output.name, `${output.sqnr_db.toFixed(1)} dB`, output.cosine.toFixed(6), `${number(output.max_abs)} (${percent(output.max_rel, 3)})`])));
}

function latencyCard({ latency, ref }) {
  return card("Latency of one run",
    h("p", { class: "muted" }, `${latency.runs} runs of ${latency.rows} row${latency.rows === 1 ? "" : "s"} on one context, measured when it was built.`),
    bars("Latency", [
      { label: "Median (p50)", value: latency.p50_ms, text: ms(latency.p50_ms), tone: "good" },
      { label: "p99", value: latency.p99_ms, text: ms(latency.p99_ms) },
    ]),
    h("p", {}, h("strong", { class: "big" }, Math.round(latency.throughput_per_s).toLocaleString()), " rows a second"),
    h("p", {}, h("a", { href: `#/try/${encodeURIComponent(ref)}` }, "Measure it with an input of yours")));
}

function tensorsCard({ signature, labels }) {
  const rows = [["in", signature.inputs], ["out", signature.outputs]].flatMap(([way, specs]) =>
    specs.map((spec) => [way, spec.name, spec.dtype, shape(spec.shape)]));
  return card("Inputs and outputs",
    table("Inputs and outputs", ["", "Name", "Type", "Shape"], rows),
    h("p", { class: "muted" }, signature.rows_max > 1 ? `Up to ${signature.rows_max} rows are joined into one run.` : "Requests are not joined."),
    labels.length > 0 && h("p", {}, `${labels.length} classes: `, ...labels.slice(0, LABELS_SHOWN).map((label) => badge(label)),
      labels.length > LABELS_SHOWN && " …"));
}

function recipeCard(recipe) {
  if (!recipe) return card("Images", h("p", { class: "muted" }, "This engine takes tensors only: it has no recipe for images."));
  return card("How an image becomes a row", facts([
    ["Size", `${recipe.width} × ${recipe.height} pixels`],
    ["Resize", `${recipe.resize}, ${recipe.interpolation}`],
    ["Colour", `${recipe.color}, ${recipe.layout}`],
    ["Scale", number(recipe.scale)],
    ["Mean", recipe.mean.map(number).join(", ")],
    ["Std", recipe.std.map(number).join(", ")],
  ]));
}

function previewCard(engine, signal) {
  const place = h("div", {}, h("p", { class: "muted" }, "Reading…"));
  showPreview(place, engine, signal).catch((problem) => signal.aborted || replace(place, problemBox(problem)));
  return card("Calibration samples, as the recipe frames them", place);
}

async function showPreview(place, engine, signal) {
  const found = await get(`/calibrations/${encodeURIComponent(engine.calibration)}/preview?n=15&engine=${encodeURIComponent(engine.ref)}`, { signal });
  replace(place,
    h("p", { class: "muted" }, `${found.images} images in ${found.files} files; ${found.width} × ${found.height} pixels each.`),
    h("ul", { class: "thumbnails" }, ...found.samples.map((sample) => h("li", {}, sample.png
      ? h("img", { src: `data:image/png;base64,${sample.png}`, alt: sample.file, title: sample.file, loading: "lazy" })
      : h("span", { class: "muted", title: sample.file }, "not an image")))));
}

function builtCard(engine) {
  return card("Built", facts([
    ["Built", `${new Date(engine.created_at).toLocaleString()}, in ${seconds(engine.built_in_s)}`],
    ["Size", bytes(engine.size_bytes)],
    ["Backend", `${engine.facts.backend} ${engine.facts.backend_version}`],
    ["Valid on", [engine.facts.device, engine.facts.compute_capability && `compute capability ${engine.facts.compute_capability}`, engine.facts.l4t && `L4T ${engine.facts.l4t}`].filter(Boolean).join(", ")],
    ["Network", engine.model ? shortId(engine.model) : "none: uploaded as an engine"],
    ["Samples", engine.calibration && shortId(engine.calibration)],
    ...Object.entries(engine.options).map(([name, value]) => [name, typeof value === "string" ? value : JSON.stringify(value)]),
  ]));
}
