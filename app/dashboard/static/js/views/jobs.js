// All jobs, newest first.

import { deviceNow, get, poll } from "../api.js";
import { badge, button, empty, h, problemBox, replace, table } from "../dom.js";
import { ago } from "../format.js";
import { engineLink } from "../engines.js";
import { elapsed, estimateText, jobActions, jobLink, stateBadge } from "../jobs.js";

const STATES = ["queued", "running", "succeeded", "failed", "cancelled"];

export const title = () => "Jobs";

export async function show(place, { signal }) {
  const list = h("div");
  const filter = h("select", { id: "state" }, h("option", { value: "" }, "all"), ...STATES.map((state) => h("option", { value: state }, state)));
  let polling = new AbortController();
  const restart = () => {
    polling.abort();
    polling = new AbortController();
    signal.addEventListener("abort", () => polling.abort());
    const path = `/jobs?limit=50${filter.value ? `&state=${filter.value}` : ""}`;
    poll(path, 1000, polling.signal, (page) => showPage(list, path, page, restart), (problem) => problem && replace(list, problemBox(problem)));
  };
  filter.addEventListener("change", restart);
  place.append(
    h("div", { class: "title" }, h("h1", {}, "Jobs"), h("p", { class: "field inline" }, h("label", { for: "state" }, "State"), filter)),
    list);
  restart();
}

function showPage(list, path, page, again) {
  if (!page.jobs.length) {
    replace(list, empty("No job here.", h("a", { class: "button primary", href: "#/build" }, "Build an engine")));
    return;
  }
  const more = page.next && button("Show older ones", async () => {
    const older = await get(`${path}&after=${encodeURIComponent(page.next)}`);
    showPage(list, path, { jobs: [...page.jobs, ...older.jobs], next: older.next }, again);
  }, { "data-key": `more-${page.next}` });
  replace(list, table("Jobs", ["Engine", "State", "Stage", "Time", "Asked for", "Result", ""], page.jobs.map((job) => row(job, again))), more);
}

function row(job, again) {
  const asked = Date.parse(job.created_at);
  return [
    jobLink(job),
    h("span", {}, stateBadge(job), job.attempt > 1 && ` attempt ${job.attempt}`),
    job.state === "running" ? job.stage ?? "starting" : "",
    h("span", {}, elapsed(job), estimateText(job) && h("span", { class: "muted" }, ` of ${estimateText(job)}`)),
    h("span", { "data-since": asked, "data-ago": "1" }, ago(Math.max(0, (deviceNow() - asked) / 1000))),
    job.engine ? engineLink(job.engine) : job.failure ? badge(job.failure.code, "bad") : "",
    jobActions(job, again),
  ];
}
