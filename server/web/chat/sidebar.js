// The list of conversations.

import { h } from "../lib/dom.js";
import { icon } from "../lib/icons.js";
import { titleOf } from "./conversations.js";

/** Shows the conversations, and what can be done with each. */
export class Sidebar {
  #given;
  #list = h("ul", { class: "conversations" });

  /**
   * @param {{onNew: Function, onOpen: Function, onRename: Function, onDelete: Function}} given
   *   each but the first gets a conversation.
   */
  constructor(given) {
    this.#given = given;
    this.element = h(
      "nav",
      { class: "sidebar", "aria-label": "Conversations" },
      h("button", { class: "new", type: "button", title: "New conversation (Alt+N)", onclick: given.onNew }, icon("plus"), "New conversation"),
      this.#list,
      h("p", { class: "sidebar-note soft" }, "Kept in this browser alone."),
    );
  }

  /** Show conversations, and which of them is open. */
  show(conversations, open) {
    this.#list.replaceChildren(...conversations.map((one) => this.#row(one, one === open)));
  }

  #row(conversation, isOpen) {
    const title = titleOf(conversation);
    const act = (label, name, action) =>
      h("button", { class: "bare small icon-only", type: "button", "aria-label": `${label}: ${title}`, title: label, onclick: () => action(conversation) }, icon(name));
    return h(
      "li",
      { class: isOpen && "open" },
      h("button", { class: "bare title", type: "button", "aria-current": isOpen && "true", title, onclick: () => this.#given.onOpen(conversation) }, h("span", {}, title)),
      act("Rename", "edit", this.#given.onRename),
      act("Delete", "trash", this.#given.onDelete),
    );
  }
}
