// Elements are made here. What comes from outside becomes text nodes and attribute values, never markup.

const PROPERTIES = new Set(["value", "checked", "disabled", "hidden", "open", "indeterminate"]);

/** An element: props are attributes, properties or, as `onclick`, listeners; children are nodes or text. */
export function h(tag, props = {}, ...children) {
  return filled(document.createElement(tag), props, children);
}

/** The same for SVG. */
export function svg(tag, props = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), props, children);
}

function filled(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) set(element, name, value);
  element.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return element;
}

function set(element, name, value) {
  if (value == null || value === false) return;
  if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
  else if (PROPERTIES.has(name)) element[name] = value;
  else if (name === "href") element.setAttribute(name, safeHref(value));
  else element.setAttribute(name, value === true ? "" : value);
}

/** Links lead to this page or this device: a name shaped like `javascript:…` leads nowhere. */
function safeHref(value) {
  return /^(#|\/(?!\/)|blob:)/.test(value) ? value : "#/";
}

/**
 * Make these the node's children. What looks the same stays the very element it was, so that a list which is drawn
 * anew every second loses neither focus nor a click under way. A listener stays too: one that depends on more than
 * the element shows needs a `data-key` that tells. Hold no reference to the children: the node may keep its own.
 */
export function replace(node, ...children) {
  const key = node.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  const wanted = children.flat(Infinity).filter((child) => child != null && child !== false);
  become(node, wanted.map((child) => (child instanceof Node ? child : document.createTextNode(child))));
  if (key && !node.contains(document.activeElement)) node.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus({ preventScroll: true });
}

function become(node, wanted) {
  wanted.forEach((child, index) => {
    const old = node.childNodes[index];
    if (!old) node.append(child);
    else if (old === child || old.isEqualNode(child)) return;
    else if (isAlike(old, child)) become(old, [...child.childNodes]);
    else old.replaceWith(child);
  });
  while (node.childNodes.length > wanted.length) node.lastChild.remove();
}

/** Whether only what is inside differs; whether a person has opened a part does not count. */
function isAlike(one, other) {
  const listed = (element) => [...element.attributes].filter(({ name }) => name !== "open").map(({ name, value }) => `${name}=${value}`).sort().join("\n");
  return one instanceof Element && other instanceof Element && one.nodeName === other.nodeName && listed(one) === listed(other);
}

export function button(text, onclick, props = {}) {
  return h("button", { type: "button", ...props, onclick }, text);
}

/** A heading with what belongs under it. */
export function card(title, ...children) {
  return h("section", { class: "card" }, title && h("h2", {}, title), ...children);
}

/** Pairs of a term and what it is; pairs without a value are left out. */
export function facts(pairs) {
  const kept = pairs.filter(([, value]) => value != null && value !== "");
  return h("dl", { class: "facts" }, ...kept.map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", {}, value))));
}

/** A table whose rows become cards on a phone. */
export function table(caption, heads, rows) {
  return h("div", { class: "scroll" },
    h("table", { role: "table" }, // the roles are lost where CSS makes cards of the rows
      h("caption", { class: "unseen" }, caption),
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, ...heads.map((head) => h("th", { scope: "col", role: "columnheader" }, head)))),
      h("tbody", { role: "rowgroup" }, ...rows.map((cells) => h("tr", { role: "row" }, ...cells.map((cell, index) =>
        h("td", { role: "cell", "data-label": heads[index] }, cell)))))));
}

export function badge(text, tone = "plain") {
  return h("span", { class: `badge ${tone}` }, text);
}

export function empty(text, ...actions) {
  return h("div", { class: "empty" }, h("p", {}, text), h("p", { class: "actions" }, ...actions));
}

/** What went wrong, and what to do. */
export function problemBox(problem) {
  return h("div", { class: "problem", role: "alert", tabindex: "-1" },
    h("p", { class: "problem-title" }, problem.title || "Something went wrong"),
    h("p", {}, problem.detail || problem.message),
    problem.hint && h("p", { class: "hint" }, h("strong", {}, "What to do: "), problem.hint),
    problem.code && h("p", { class: "code" }, problem.code));
}
