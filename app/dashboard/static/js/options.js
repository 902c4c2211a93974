// Form fields made from the API's description of them.

import { h } from "./dom.js";

// Where an option belongs, by its name or its help; the last takes what is left, so a new option shows by itself.
const GROUPS = [
  ["Images", (name) => name.includes("preprocess")],
  ["Shapes and batch", (name) => name.endsWith("_shapes") || name.includes("batch")],
  ["INT8", (name) => name.startsWith("int8")],
  ["TensorRT", (name, { description }) => description.includes("TensorRT")],
  ["More options", () => true],
];

/** [title, {name: description}] of each group that has some. */
export function optionGroups(properties) {
  const groups = new Map(GROUPS.map(([title]) => [title, {}]));
  for (const [name, description] of Object.entries(properties)) {
    groups.get(GROUPS.find(([, takes]) => takes(name, description))[0])[name] = description;
  }
  return [...groups].filter(([, group]) => Object.keys(group).length > 0);
}

/** {element, input, value}: value() is what is sent, null where it is left to the device. */
export function optionField(name, description) {
  const id = `option-${name}`;
  const help = h("p", { class: "help", id: `${id}-help` }, sentence(description.description ?? ""));
  const label = h("label", { for: id }, name.replaceAll("_", " "));
  if (description.type === "boolean") return checkbox(id, description, label, help);
  const input = widget(id, description);
  input.setAttribute("aria-describedby", help.id);
  const element = h("div", { class: description.multiline ? "field wide" : "field" }, label, input, suggestions(input, description), help);
  const value = () => (input.value.trim() === "" || input.value === String(description.default) ? null : input.value.trim());
  return { element, input, value };
}

function checkbox(id, description, label, help) {
  const input = h("input", { type: "checkbox", id, checked: description.default === true, "aria-describedby": help.id });
  const element = h("div", { class: "field check" }, h("p", {}, input, label), help);
  return { element, input, value: () => (input.checked === (description.default === true) ? null : String(input.checked)) };
}

function widget(id, description) {
  if (description.enum) {
    const choices = description.default === undefined ? ["", ...description.enum] : description.enum;
    return h("select", { id }, ...choices.map((choice) => h("option", { value: choice, selected: choice === description.default }, choice || "the default")));
  }
  if (description.multiline) return h("textarea", { id, rows: "3", spellcheck: "false" });
  if (description.type === "integer" || description.type === "number") {
    return h("input", { id, type: "number", min: description.minimum, max: description.maximum, step: description.type === "integer" ? 1 : "any" });
  }
  return h("input", { id, type: "text", autocomplete: "off", spellcheck: "false", required: description.required, placeholder: description.default });
}

function suggestions(input, { examples }) {
  if (!examples) return null;
  const list = h("datalist", { id: `${input.id}-list` }, ...examples.map((value) => h("option", { value })));
  input.setAttribute("list", list.id);
  return list;
}

export const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (text.endsWith(".") ? "" : ".");
