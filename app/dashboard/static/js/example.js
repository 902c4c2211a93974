// The example that comes with the service: a small network that reads handwritten digits.

import { get, upload } from "./api.js";

const FOLDER = "/static/example";
let described = null;

export function example() {
  described ??= get(`${FOLDER}/example.json`);
  return described;
}

/** Build it as anybody would build a network of theirs; the job. */
export async function buildExample(signal) {
  const about = await example();
  const form = new FormData();
  form.set("name", about.name);
  form.set("model", await file(about.model), about.model);
  form.set("calibration", await file(about.calibration), about.calibration);
  form.set("labels", await (await file(about.labels)).text());
  for (const [name, value] of Object.entries(about.options)) form.set(name, value);
  return upload("/jobs", form, () => {}, signal);
}

/** Images to try an engine with; none unless it was built from the example. */
export async function exampleImages(engine) {
  const about = await example();
  return engine.model === about.model_id ? about.images : [];
}

export const imageUrl = (name) => `${FOLDER}/${name}`;

export async function file(name) {
  return (await fetch(`${FOLDER}/${name}`)).blob();
}
