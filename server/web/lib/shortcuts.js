// Keys that work anywhere on the page, and the list of them.

import { h } from "./dom.js";
import { openDialog } from "./dialogs.js";

const LIST = [
  ["Enter", "send the message, or run the race"],
  ["Shift + Enter", "a new line in the message"],
  ["Esc", "stop the answer; close what is open"],
  ["/", "to the message"],
  ["Alt + N", "a new conversation"],
  ["Alt + T", "between text and tokens, for all answers"],
  ["Alt + R", "answer anew"],
  ["↑ in an empty message", "edit the last message"],
  ["← →", "from token to token, in the token view"],
  ["?", "this list"],
];
const actions = new Map();
let isShown = false;

/** Let a key do something, unless it is typed into a text. */
export function onShortcut(name, action) {
  actions.set(name, action);
}

/** Show the list. */
export async function showShortcuts() {
  if (isShown) return;
  isShown = true;
  const rows = LIST.map(([keys, meaning]) => [
    h("dt", {}, h("kbd", {}, keys)),
    h("dd", {}, meaning),
  ]);
  const body = [h("dl", { class: "shortcuts" }, rows)];
  await openDialog({ title: "Keyboard", body, accept: "Close", cancel: null });
  isShown = false;
}

/** Begin to hear keys. */
export function hearShortcuts() {
  onShortcut("?", showShortcuts);
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey) return;
    const isTyping = event.target.closest?.("input, textarea, select, [contenteditable]");
    if (document.querySelector("dialog[open]")) return;
    const name = event.altKey ? `Alt+${event.code.replace("Key", "")}` : event.key;
    if (isTyping && !event.altKey && event.key !== "Escape") return;
    const action = actions.get(name);
    if (!action) return;
    // Only who has done something takes the key from the browser.
    if (action(event) !== false) event.preventDefault();
  });
}
