// The API key, where the server wants one. It is kept until the tab is closed, and nowhere else.

import { h } from "./dom.js";
import { openDialog } from "./dialogs.js";

const NAME = "outdraft.key";
const heard = new Set();
let asking = null;

/** Give the key; "" = none. */
export function currentKey() {
  return sessionStorage.getItem(NAME) ?? "";
}

/** Hear of every new key. */
export function onKey(listener) {
  heard.add(listener);
}

/**
 * Ask for a key, once for all who ask at a time.
 *
 * @param {string} why what the server said; "" = somebody wants to change it.
 * @returns {Promise<boolean>} whether there is another one now.
 */
export function askForKey(why = "") {
  asking ??= ask(why).finally(() => {
    asking = null;
  });
  return asking;
}

async function ask(why) {
  const input = h("input", {
    type: "password",
    id: "api-key",
    autocomplete: "off",
    spellcheck: "false",
    value: currentKey(),
  });
  const answer = await openDialog({
    title: "API key",
    body: [
      why && h("p", { class: "soft", id: "api-key-why" }, why),
      h("label", { for: "api-key" }, "Key", input),
      h("p", { class: "soft" }, "It stays in this tab, and is forgotten when the tab is closed."),
    ],
    accept: "Use this key",
  });
  if (!answer) return false;
  const key = input.value.trim();
  if (key) sessionStorage.setItem(NAME, key);
  else sessionStorage.removeItem(NAME);
  for (const listener of heard) listener(key);
  return true;
}
