// Questions to whoever sits there; the browser's own dialog element holds the focus and hears Esc.

import { h } from "./dom.js";

let count = 0;

/**
 * Ask something.
 *
 * @param {{title: string, body: Array, accept: string, isDanger?: boolean, cancel?: string|null}} what
 *   without a `cancel` there is nothing to decide, only to close.
 * @returns {Promise<boolean>} whether it was accepted.
 */
export function openDialog({ title, body, accept, cancel = "Cancel" }) {
  count += 1;
  const id = `dialog-${count}`;
  const dialog = h(
    "dialog",
    { "aria-labelledby": id },
    h(
      "form",
      { method: "dialog", onsubmit: closeAs("accept") },
      h("h2", { id }, title),
      body,
      h(
        "div",
        { class: "dialog-buttons" },
        cancel && h("button", { type: "button", onclick: () => dialog.close("") }, cancel),
        h("button", { class: "main", type: "submit" }, accept),
      ),
    ),
  );
  function closeAs(value) {
    return (event) => {
      event.preventDefault();
      dialog.close(value);
    };
  }
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "accept");
    });
  });
}

/** Ask for a text; null = nothing was given. */
export async function askForText(title, label, text) {
  const input = h("input", { type: "text", id: "asked-text", value: text });
  const body = [h("label", { for: "asked-text" }, label, input)];
  const isGiven = await openDialog({ title, body, accept: "Save" });
  return isGiven && input.value.trim() ? input.value.trim() : null;
}
