// The device now and since the page was opened.

import { deviceNow, get, pause } from "../api.js";
import { line } from "../charts.js";
import { badge, card, facts, h, replace } from "../dom.js";
import { mib, percent } from "../format.js";

const EVERY_MS = 5000;
const SAMPLES_MAX = 720; // an hour
const samples = new Map(); // name → [[ms, value]]
let latest = null;

export const title = () => "Device";

/** Take samples for as long as the page is open, whichever view is shown; a change is told to the document. */
export async function sample(signal) {
  for (;;) {
    await get("/device", { signal }).then(take, () => {}); // the banner tells when the device does not answer
    await pause(EVERY_MS, signal);
    while (document.hidden) await pause(500, signal);
  }
}

function take(device) {
  latest = device;
  for (const { name, value } of series(device)) {
    samples.set(name, [...(samples.get(name) ?? []), [deviceNow(), value]].slice(-SAMPLES_MAX));
  }
  document.dispatchEvent(new Event("sampled"));
}

export async function show(place, { signal }) {
  const [plots, about] = [h("div", { class: "tiles" }), h("div")];
  place.append(h("h1", {}, "Device"), plots, about);
  const draw = () => {
    replace(plots, ...series(latest).map(tile));
    replace(about, ...description(latest));
  };
  document.addEventListener("sampled", draw, { signal });
  if (latest !== null) draw();
}

/** What is drawn over time. */
function series(device) {
  const load = device.gpu_load; // 0..1; missing where the device does not tell it
  return [
    { name: "Memory used", value: device.memory_total_mib - device.memory_available_mib, high: device.memory_total_mib, format: mib, isPart: true },
    { name: "Disk used", value: device.disk_total_mib - device.disk_free_mib, high: device.disk_total_mib, format: mib, isPart: true },
    typeof load === "number" && { name: "GPU load", value: load, high: 1, format: (value) => percent(value, 0) },
    ...Object.entries(device.temperatures_c).map(([zone, value]) => ({ name: zone, value, high: 100, format: (found) => `${found.toFixed(1)} °C` })),
  ].filter(Boolean);
}

function tile({ name, value, high, format, isPart }) {
  const points = samples.get(name) ?? [[deviceNow(), value]];
  return card(name,
    h("p", {}, h("strong", { class: "big" }, format(value)), isPart && h("span", { class: "muted" }, ` of ${format(high)}`)),
    line(name, points, { format, high }));
}

function description(device) {
  const { gpu } = device;
  return [
    h("div", { class: "columns" },
      card("This device", facts([
        ["Board", device.board],
        ["Machine", `${device.machine}, ${device.cpus} cores`],
        ["Memory", mib(device.memory_total_mib)],
        ["JetPack", device.jetpack],
        ["L4T", device.l4t],
        ["Power mode", device.power_mode],
        ["System", device.system],
        ["Python", device.python],
        ["jetforge", device.jetforge],
      ])),
      card("GPU", gpu ? facts([
        ["Name", gpu.name],
        ["Compute capability", gpu.compute_capability],
        ["Memory", `${mib(gpu.memory_mib)}${gpu.shares_memory ? ", shared with the processor" : ""}`],
        ["CUDA", gpu.cuda],
        ["DLA cores", gpu.dla_cores],
      ]) : h("p", { class: "muted" }, "None that can be used: ", device.gpu_missing))),
    card("Backends", ...device.backends.map(backend)),
  ];
}

function backend({ name, available, precisions, facts: valid, missing, hint }) {
  return h("div", { class: "backend" },
    h("h3", {}, name, " ", badge(available ? "available" : "missing", available ? "good" : "plain")),
    available ? h("p", {}, valid.backend_version, " on ", valid.device, " ", ...precisions.map((precision) => badge(precision)))
      : h("div", {}, h("p", { class: "muted" }, missing), hint && h("p", {}, h("strong", {}, "How to get it: "), hint)));
}
