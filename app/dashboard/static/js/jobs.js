// What several pages show of a job.

import { deviceNow, send } from "./api.js";
import { confirmed, attempt, toast } from "./dialogs.js";
import { badge, button, h } from "./dom.js";
import { counting, seconds } from "./format.js";

const TONES = { queued: "plain", running: "busy", succeeded: "good", failed: "bad", cancelled: "plain" };

export const isFinal = (job) => ["succeeded", "failed", "cancelled"].includes(job.state);

export function stateBadge(job) {
  if (job.cancel_requested && !isFinal(job)) return badge("cancelling", "busy");
  return badge(job.state, TONES[job.state]);
}

export const jobLink = (job) => h("a", { href: `#/jobs/${job.id}`, "data-key": `job-${job.id}` }, job.name);

/** How long it has been building, counting on while it does. */
export function elapsed(job) {
  const start = Date.parse(job.started_at ?? job.created_at);
  if (isFinal(job)) return h("span", {}, job.reused ? "at once" : seconds(Math.max(0, Date.parse(job.finished_at) - start) / 1000));
  return h("span", { "data-since": start }, counting(Math.max(0, deviceNow() - start) / 1000));
}

export function cancelButton(job, then) {
  const element = button("Cancel", async () => {
    if (!(await confirmed(`Cancel the build of ${job.name}?`, "What it has done so far is lost. It can be queued again later.", "Cancel the build"))) return;
    await attempt(element, () => send("DELETE", `/jobs/${job.id}`));
    then();
  }, { "data-key": `cancel-${job.id}`, "aria-label": `Cancel the build of ${job.name}` });
  return element;
}

export function retryButton(job, then) {
  const element = button("Retry", async () => {
    if (!(await attempt(element, () => send("POST", `/jobs/${job.id}/retry`)))) return;
    toast(`${job.name} is queued again.`, "good");
    then();
  }, { "data-key": `retry-${job.id}`, "aria-label": `Build ${job.name} again` });
  return element;
}

export function jobActions(job, then) {
  if (!isFinal(job)) return job.cancel_requested ? null : cancelButton(job, then);
  return job.state === "succeeded" ? null : retryButton(job, then);
}

/** What the device expects the whole build to take; empty where it does not know. */
export function estimateText(job) {
  return typeof job.estimated_s === "number" ? `about ${seconds(job.estimated_s)}` : "";
}
