// One job: its stages, its events and its log as they happen.

import { deviceNow, events, get, pause } from "../api.js";
import { candidatesCard } from "../candidates.js";
import { badge, card, facts, h, replace } from "../dom.js";
import { engineLink, path, tryLink } from "../engines.js";
import { clock, counting, seconds, shortId } from "../format.js";
import { elapsed, estimateText, isFinal, jobActions, stateBadge } from "../jobs.js";

const STAGES = ["export", "inspect", "simplify", "quantise", "compile", "verify", "publish"];
const LINES_MAX = 5000; // of the log, in the page

export const title = (id) => `Job ${id}`;

export async function show(place, { argument: id, signal }) {
  const page = new JobPage(place, id, signal);
  await page.refresh();
  page.follow();
}

class JobPage {
  constructor(place, id, signal) {
    [this.id, this.signal, this.seen, this.lastId] = [id, signal, [], null];
    this.head = h("div");
    this.outcome = h("div", { "aria-live": "polite" });
    this.stages = h("ol", { class: "stages", "aria-label": "Stages" });
    this.steps = h("ol", { class: "steps" });
    this.log = h("pre", { class: "log", tabindex: "0", "aria-label": "Log" });
    this.about = h("div");
    place.append(this.head, this.stages, this.outcome, h("div", { class: "columns" }, card("What happened", this.steps), card("Log", this.log)), this.about);
  }

  async refresh() {
    this.job = await get(`/jobs/${encodeURIComponent(this.id)}`, { signal: this.signal });
    if (this.job.candidates?.length) this.engine ??= await get(path(this.job.engine), { signal: this.signal }).catch(() => null);
    document.title = `${this.job.name}: ${this.job.state} · jetforge`;
    replace(this.head, ...this.heading());
    replace(this.outcome, outcome(this.job, this.engine));
    replace(this.about, card("Asked for", asked(this.job)));
    this.showStages();
  }

  heading() {
    const job = this.job;
    const expected = estimateText(job);
    return [h("div", { class: "title" },
      h("h1", {}, job.name, " ", stateBadge(job)),
      h("p", { class: "actions" }, jobActions(job, () => this.again()))),
    h("p", { class: "muted" }, isFinal(job) ? "Took " : job.state === "queued" ? "Waiting for " : "Building for ", elapsed(job),
      expected && !isFinal(job) && `, ${expected} in all`, job.attempt > 1 && `, attempt ${job.attempt}`)];
  }

  /** After a cancel or a retry: what is shown, and the stream, may have ended. */
  async again() {
    await this.refresh();
    if (!this.following) this.follow();
  }

  async follow() {
    this.following = true;
    while (!this.signal.aborted) {
      try {
        this.log.textContent = ""; // a stream tells the log from its start
        for await (const event of events(`/jobs/${this.id}/events`, { signal: this.signal, lastId: this.lastId })) {
          this.lastId = event.id ?? this.lastId;
          if (event.event === "log") this.addLine(event.data.line);
          else if (event.event !== "end") this.addEvent(event.data);
        }
        await this.refresh();
        if (isFinal(this.job)) break;
      } catch (problem) {
        if (this.signal.aborted) return;
      }
      await pause(1000, this.signal);
    }
    this.following = false;
  }

  addLine(line) {
    const atEnd = this.log.scrollTop + this.log.clientHeight >= this.log.scrollHeight - 30;
    this.log.append(`${line}\n`);
    while (this.log.childNodes.length > LINES_MAX) this.log.firstChild.remove();
    if (atEnd) this.log.scrollTop = this.log.scrollHeight;
  }

  addEvent(event) {
    this.seen.push(event);
    const tone = event.kind === "warning" ? "bad" : event.kind === "stage" ? "accent" : "plain";
    this.steps.append(h("li", { class: event.kind },
      h("time", { class: "muted", datetime: event.at }, clock(event.at)), " ",
      event.kind === "stage" || event.kind === "warning" ? badge(event.kind === "stage" ? event.stage : "warning", tone) : null, " ", event.message));
    if (event.kind === "state" || event.kind === "stage") this.refreshSoon();
  }

  /** Once for many events: those of the past arrive all together. */
  refreshSoon() {
    this.due ??= setTimeout(() => {
      this.due = null;
      if (!this.signal.aborted) this.refresh().catch(() => {}); // the stream ends with another one
    }, 100);
  }

  showStages() {
    const spent = timeSpent(this.seen, isFinal(this.job) ? Date.parse(this.job.finished_at) : deviceNow());
    const now = isFinal(this.job) ? null : this.job.stage;
    const reached = STAGES.filter((stage) => spent.has(stage) || stage === now);
    const shown = isFinal(this.job) ? reached : STAGES.filter((stage) => reached.includes(stage) || !["export", "quantise"].includes(stage));
    replace(this.stages, ...shown.map((stage) => {
      const isNow = stage === now;
      const failed = this.job.state === "failed" && stage === this.job.stage;
      const tone = failed ? "failed" : isNow ? "now" : reached.includes(stage) ? "done" : "";
      return h("li", { class: tone, "aria-current": isNow ? "step" : null }, h("span", {}, stage),
        h("small", {}, isNow ? h("span", { "data-since": this.since() }, counting(Math.max(0, deviceNow() - this.since()) / 1000)) : spent.has(stage) ? seconds(spent.get(stage)) : " "));
    }));
  }

  since() {
    const last = this.seen.filter((event) => event.kind === "stage").at(-1);
    return last ? Date.parse(last.at) : Date.parse(this.job.started_at ?? this.job.created_at);
  }
}

/** Seconds in each stage of the latest attempt; a stage may be entered several times. */
function timeSpent(seen, endMs) {
  const start = seen.findLastIndex((event) => event.kind === "state" && event.message.startsWith("Running"));
  const entered = seen.slice(start + 1).filter((event) => event.kind === "stage");
  const spent = new Map();
  entered.forEach((event, index) => {
    const untilMs = index + 1 < entered.length ? Date.parse(entered[index + 1].at) : endMs;
    spent.set(event.stage, (spent.get(event.stage) ?? 0) + Math.max(0, untilMs - Date.parse(event.at)) / 1000);
  });
  return spent;
}

function outcome(job, engine) {
  if (job.state === "failed") return failure(job.failure);
  if (job.state !== "succeeded") return null;
  return h("div", {},
    h("section", { class: "card success" },
      h("h2", {}, job.reused ? "This very engine existed already" : "The engine is ready"),
      h("p", { class: "actions" }, tryLink(job.engine, { class: "button primary" }), h("span", {}, "or look at ", engineLink(job.engine)))),
    candidatesCard(job.candidates, engine));
}

function failure({ code, message, hint, detail }) {
  return h("section", { class: "problem", role: "alert" },
    h("h2", { class: "problem-title" }, "The build failed"),
    h("p", {}, message),
    hint && h("p", { class: "hint" }, h("strong", {}, "What to do: "), hint),
    h("p", { class: "code" }, code),
    detail && h("details", {}, h("summary", {}, "What the runtime said"), h("pre", { class: "log" }, detail)));
}

function asked(job) {
  return facts([
    ["Job", job.id],
    ["Network", shortId(job.model)],
    ["Samples", job.calibration && shortId(job.calibration)],
    ...Object.entries(job.options).map(([name, value]) => [name, typeof value === "string" ? value : JSON.stringify(value)]),
  ]);
}
