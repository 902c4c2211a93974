// The first page: what this is, a way to try it, and what is under way.

import { poll } from "../api.js";
import { attempt } from "../dialogs.js";
import { badge, button, card, h, replace, table } from "../dom.js";
import { engineLink, precisionBadge, tryLink, warmBadge } from "../engines.js";
import { buildExample } from "../example.js";
import { mib, ms } from "../format.js";
import { elapsed, jobLink, stateBadge } from "../jobs.js";

export const title = () => "Overview";

export async function show(place, { signal }) {
  const device = h("p", { class: "lead muted" });
  const jobs = h("div");
  const engines = h("div");
  place.append(hero(device, signal), h("div", { class: "columns" }, jobs, engines));
  poll("/device", 10_000, signal, (found) => replace(device, ...deviceLine(found)));
  poll("/jobs?limit=5", 1500, signal, (page) => replace(jobs, latestJobs(page.jobs)));
  poll("/engines?limit=5", 3000, signal, (page) => replace(engines, latestEngines(page.engines)));
}

function hero(device, signal) {
  const start = button("Try with the built-in example", () => attempt(start, async () => {
    location.hash = `#/jobs/${(await buildExample(signal)).id}`;
  }), { class: "primary", id: "example" });
  return h("section", { class: "hero" },
    h("h1", {}, "Turn a network into an engine, here"),
    h("p", { class: "lead" }, "Upload a trained network. This device compiles it, proves the engine against the network it came from, and serves it."),
    h("p", { class: "actions" }, start, h("a", { class: "button", href: "#/build" }, "Build your own")),
    h("p", { class: "muted" }, "The example reads handwritten digits. It builds in seconds; then drop an image and see the answer."),
    device);
}

function deviceLine(found) {
  const backends = found.backends.filter((backend) => backend.available).map((backend) => backend.name);
  return [
    found.board ?? found.gpu?.name ?? `${found.machine}, ${found.cpus} cores`,
    ` · ${mib(found.memory_available_mib)} of memory free · ${mib(found.disk_free_mib)} of disk free · `,
    ...backends.map((name) => badge(name, "accent")),
  ];
}

function latestJobs(jobs) {
  const rows = jobs.map((job) => [jobLink(job), stateBadge(job), job.state === "running" ? job.stage ?? "starting" : "", elapsed(job)]);
  return card("Latest jobs", rows.length ? table("Latest jobs", ["Job", "State", "Stage", "Time"], rows) : h("p", { class: "muted" }, "No job yet."));
}

function latestEngines(engines) {
  const rows = engines.map((engine) => [engineLink(engine.ref), precisionBadge(engine), ms(engine.latency.p50_ms), warmBadge(engine), tryLink(engine.ref)]);
  return card("Latest engines", rows.length ? table("Latest engines", ["Engine", "Precision", "p50", "State", ""], rows) : h("p", { class: "muted" }, "No engine yet."));
}
