// The device's API: requests with the key where one is needed, uploads with progress, event streams, polls.

import { askForKey } from "./dialogs.js";

const KEY = "jetforge-key";
let clockOffsetMs = 0; // the device's clock may be wrong: elapsed times are told by it, not by the browser's
let asking = null; // one question for a key, however many requests wait for it
let isDeclined = false; // the person has no key: do not ask again and again

/** What the service, or the way to it, refused. */
export class Problem extends Error {
  constructor(body, status) {
    super(body.detail ?? `The device answered ${status}.`);
    Object.assign(this, { title: body.title, detail: this.message, hint: body.hint, code: body.code, status });
  }
}

export function deviceNow() {
  return Date.now() + clockOffsetMs;
}

export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

function headers() {
  return hasKey() ? { Authorization: `Bearer ${sessionStorage.getItem(KEY)}` } : {};
}

async function newKey(used) {
  if ((sessionStorage.getItem(KEY) ?? "") !== used) return; // another request has asked meanwhile
  if (!isDeclined) asking ??= askForKey(used !== "").finally(() => { asking = null; });
  const key = await asking;
  isDeclined = key === null;
  if (isDeclined) throw new Problem({ title: "A key is needed", detail: "The device asks for an access key.", hint: "Reload the page to enter one." }, 401);
  sessionStorage.setItem(KEY, key);
}

/** An answer, whatever its status but 401. */
export async function request(path, options = {}) {
  for (;;) {
    const used = sessionStorage.getItem(KEY) ?? "";
    const answer = await reached(() => fetch(path, { ...options, headers: { ...options.headers, ...headers() } }));
    const date = Date.parse(answer.headers.get("date"));
    if (date && Math.abs(date - deviceNow()) > 2000) clockOffsetMs = date - Date.now();
    if (answer.status !== 401) return answer;
    await newKey(used);
  }
}

async function reached(ask) {
  try {
    return await ask();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw unreachable();
  }
}

function unreachable() {
  return new Problem({ title: "The device does not answer", detail: "The connection to the device failed.", hint: "Check that the service runs and that you can reach it." }, 0);
}

async function checked(answer) {
  if (answer.ok) return answer;
  throw new Problem(parsed(await answer.text()), answer.status);
}

function parsed(text) {
  try {
    return JSON.parse(text) ?? {};
  } catch {
    return {};
  }
}

export async function get(path, options) {
  return (await checked(await request(path, options))).json();
}

export async function send(method, path, options = {}) {
  const text = await (await checked(await request(path, { method, ...options }))).text();
  return text ? JSON.parse(text) : null;
}

/** POST a form; `onprogress` is told the bytes sent and all bytes. */
export async function upload(path, form, onprogress, signal) {
  for (;;) {
    const used = sessionStorage.getItem(KEY) ?? "";
    const answer = await uploaded(path, form, onprogress, signal);
    if (answer.status === 401) await newKey(used);
    else if (answer.status >= 400) throw new Problem(parsed(answer.responseText), answer.status);
    else return parsed(answer.responseText);
  }
}

function uploaded(path, form, onprogress, signal) {
  return new Promise((resolve, reject) => { // fetch tells nothing of an upload's progress
    const call = new XMLHttpRequest();
    call.open("POST", path);
    for (const [name, value] of Object.entries(headers())) call.setRequestHeader(name, value);
    call.upload.addEventListener("progress", (event) => onprogress(event.loaded, event.total));
    call.addEventListener("load", () => resolve(call));
    call.addEventListener("error", () => reject(unreachable()));
    call.addEventListener("abort", () => reject(new DOMException("cancelled", "AbortError")));
    signal.addEventListener("abort", () => call.abort());
    call.send(form);
  });
}

/** Server-sent events as {event, data, id}, by fetch: an EventSource cannot send a key. Ends when the stream does. */
export async function* events(path, { signal, lastId }) {
  const answer = await checked(await request(path, { signal, headers: lastId ? { "Last-Event-ID": lastId } : {} }));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    yield* blocks.map(eventOf).filter((event) => event.data !== undefined);
  }
}

function eventOf(block) {
  const found = {};
  for (const line of block.split("\n")) {
    const [, field, value] = /^(\w+): ?(.*)$/.exec(line) ?? [];
    if (field) found[field] = value;
  }
  if (found.data !== undefined) found.data = JSON.parse(found.data);
  return found;
}

/** Ask again and again, `onbody` being told only of what has changed; nothing is asked while the page is hidden. */
export async function poll(path, everyMs, signal, onbody, onproblem = () => {}) {
  let seen = null;
  while (!signal.aborted) {
    try {
      const answer = await checked(await request(path, { signal }));
      const tag = answer.headers.get("etag");
      if (tag === null || tag !== seen) onbody(await answer.json());
      seen = tag;
      onproblem(null);
    } catch (error) {
      if (signal.aborted) return;
      onproblem(error);
    }
    await pause(everyMs, signal);
    while (document.hidden && !signal.aborted) await pause(500, signal);
  }
}

export function pause(forMs, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, forMs);
    signal?.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
  });
}
