// Inputs made up to see an engine run.

import { Problem } from "./api.js";

const ELEMENTS_MAX = 2_000_000;

/** A request with random numbers for each input, in the shapes that the engine is fastest at. */
export function randomInputs(signature) {
  const inputs = {};
  for (const spec of signature.inputs) {
    const lengths = signature.ranges[spec.name]?.opt ?? spec.shape.map((length) => (length < 0 ? 1 : length));
    if (lengths.reduce((product, length) => product * length, 1) > ELEMENTS_MAX) {
      throw new Problem({ detail: `The input ${spec.name} is too large to be made up here.`, hint: "Drop an .npy or .npz file instead." }, 0);
    }
    inputs[spec.name] = nested(lengths, maker(spec.dtype));
  }
  return JSON.stringify({ inputs });
}

function nested([length, ...rest], make) {
  if (length === undefined) return make();
  return Array.from({ length }, () => nested(rest, make));
}

function maker(dtype) {
  if (dtype === "bool") return () => Math.random() < 0.5;
  if (dtype.startsWith("float")) return () => Math.random();
  return () => Math.floor(Math.random() * 2);
}
