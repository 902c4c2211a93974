// Which page is shown, and what every page has: the device's health, and samples of its state.

import { deviceNow, pause, poll } from "./api.js";
import { h, problemBox, replace } from "./dom.js";
import { ago, counting } from "./format.js";
import * as build from "./views/build.js";
import * as device from "./views/device.js";
import * as engine from "./views/engine.js";
import * as engines from "./views/engines.js";
import * as job from "./views/job.js";
import * as jobs from "./views/jobs.js";
import * as overview from "./views/overview.js";
import * as tryout from "./views/try.js";

const PAGES = { "": overview, build, jobs, engines, try: tryout, device };
const DETAILS = { jobs: job, engines: engine, try: tryout, build };
const main = document.getElementById("main");
let leaving = null; // aborts what the page that is shown has under way

async function show() {
  const [page = "", argument] = location.hash.replace(/^#\/?/, "").split("/").map(decoded);
  const view = (argument ? DETAILS[page] : PAGES[page]) ?? overview;
  leaving?.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  for (const link of document.querySelectorAll(".nav a")) {
    if (link.dataset.page === page) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const place = h("div", { class: "page" });
  main.replaceChildren(place);
  try {
    document.title = `${view.title(argument)} · jetforge`;
    await view.show(place, { argument, signal });
  } catch (problem) {
    if (!signal.aborted) place.append(problemBox(problem));
  }
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** Elements with a start (`data-since`, ms by the device's clock) tell how long ago that was. */
async function tick() {
  for (;;) {
    for (const element of document.querySelectorAll("[data-since]")) {
      const passed = Math.max(0, (deviceNow() - Number(element.dataset.since)) / 1000);
      element.textContent = element.dataset.ago ? ago(passed) : counting(passed);
    }
    await pause(1000);
  }
}

function showHealth(ready) {
  const node = document.getElementById("health");
  const busy = ready.running + ready.queued;
  const text = !ready.workers ? "No build worker" : busy ? `${ready.running} building, ${ready.queued} waiting` : "Ready";
  replace(node, h("span", { class: `dot ${!ready.workers ? "bad" : busy ? "busy" : "good"}`, "aria-hidden": "true" }), text);
  node.title = ready.status;
}

function showBanner(problem) {
  const banner = document.getElementById("banner");
  banner.hidden = problem === null;
  if (problem !== null) replace(banner, `${problem.title ?? "Something went wrong"}: ${problem.detail ?? problem.message} ${problem.hint ?? ""}`);
}

window.addEventListener("hashchange", async () => {
  await show();
  main.focus({ preventScroll: true });
  scrollTo(0, 0);
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the hash names the page
  main.focus();
});
for (const kind of ["dragover", "drop"]) window.addEventListener(kind, (event) => event.preventDefault()); // a missed drop must not leave the page

const always = new AbortController().signal;
tick();
poll("/readyz", 3000, always, showHealth, showBanner);
device.sample(always);
show();
