// Copies text to the clipboard.

import { announce, h, notify } from "./dom.js";
import { icon } from "./icons.js";

const SHOWN_MS = 1500;

/** Give a button that copies what a function gives. */
export function copyButton(label, text) {
  const button = h(
    "button",
    { class: "bare small icon-only", type: "button", "aria-label": label, title: label },
    icon("copy"),
  );
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
    } catch {
      notify("The browser does not let this page copy; select the text instead.");
      return;
    }
    announce("Copied");
    button.replaceChildren(icon("check"));
    setTimeout(() => button.replaceChildren(icon("copy")), SHOWN_MS);
  });
  return button;
}
