// Questions and short messages.

import { button, h } from "./dom.js";

/** Ask before something that cannot be undone; true when the person agrees. */
export function confirmed(title, text, action) {
  return asked((answer) => [
    h("h2", {}, title),
    h("p", {}, text),
    h("p", { class: "actions end" },
      button("Keep it", () => answer(false), { autofocus: true }),
      button(action, () => answer(true), { class: "danger" })),
  ], false);
}

/** Ask for an access key; null when the person has none. */
export function askForKey(wasWrong) {
  return asked((answer) => {
    const input = h("input", { type: "password", id: "key", autocomplete: "off", required: true, autofocus: true });
    return [
      h("h2", {}, "Access key"),
      h("p", {}, wasWrong ? "The device refused that key. Enter another one." : "This device asks for a key. It is kept until this tab is closed."),
      h("form", { onsubmit: (event) => { event.preventDefault(); answer(input.value.trim()); } },
        h("label", { for: "key" }, "Key"), input,
        h("p", { class: "actions end" },
          button("Cancel", () => answer(null)),
          h("button", { class: "primary" }, "Use it"))),
    ];
  }, null);
}

function asked(content, onclose) {
  return new Promise((resolve) => {
    let result = onclose;
    const dialog = h("dialog", { "aria-modal": "true" });
    const answer = (value) => { result = value; dialog.close(); };
    dialog.append(...content(answer));
    dialog.addEventListener("close", () => { dialog.remove(); resolve(result); });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** A message that goes by itself. */
export function toast(text, tone = "plain") {
  const message = h("p", { class: `toast ${tone}` }, text);
  document.getElementById("toasts").append(message);
  setTimeout(() => message.remove(), 6000);
}

/** Do it, the button being busy meanwhile; a refusal becomes a message with its hint. */
export async function attempt(element, act) {
  element.disabled = true;
  try {
    return await act();
  } catch (problem) {
    toast([problem.detail ?? problem.message, problem.hint].filter(Boolean).join(" "), "bad");
    return undefined;
  } finally {
    element.disabled = false;
  }
}
