// The key that opens the statistics: asked for where the server wants one, kept for this tab.

import { h } from "../lib/dom.js";
import { setText } from "./drawing.js";

const STORED = "outdraft.admin_key";

/** Give the key that was entered in this tab, or an empty text. */
export function storedKey() {
  return sessionStorage.getItem(STORED) ?? "";
}

export class KeyForm {
  #why = h("p", { class: "board-why", role: "alert" });
  #input = h("input", {
    id: "board-key",
    type: "password",
    autocomplete: "off",
    spellcheck: "false",
    required: true,
  });

  /** @param {() => void} onKey called when a key was entered */
  constructor(onKey) {
    this.element = h(
      "form",
      { class: "board-key", hidden: true },
      h("h3", {}, "These numbers need the admin key"),
      h("label", { for: "board-key" }, "Admin key"),
      this.#input,
      this.#why,
      h("p", { class: "board-note" }, "It is kept in this tab until the tab is closed."),
      h("button", { class: "main", type: "submit" }, "Show the board"),
    );
    this.element.addEventListener("submit", (event) => {
      event.preventDefault();
      sessionStorage.setItem(STORED, this.#input.value.trim());
      this.#input.value = "";
      onKey();
    });
  }

  /** Ask for a key; a key that was refused is forgotten, and said to be. */
  ask(why) {
    setText(this.#why, storedKey() ? `That key was refused: ${why}` : "");
    sessionStorage.removeItem(STORED);
    this.element.hidden = false;
    this.#input.focus();
  }

  hide() {
    this.element.hidden = true;
  }
}
