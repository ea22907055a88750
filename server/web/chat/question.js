// How a message of the user looks, and how it is edited.

import { h } from "../lib/dom.js";
import { icon } from "../lib/icons.js";
import { copyButton } from "../lib/copy.js";

/** Shows one message of the user. */
export class QuestionView {
  #message;
  #onEdit;

  /**
   * @param {object} message
   * @param {(text: string) => void} onEdit hears of another text, which is to be asked instead.
   */
  constructor(message, onEdit) {
    this.#message = message;
    this.#onEdit = onEdit;
    this.element = h("article", { class: "message user", "aria-label": "You", data: { id: message.id } });
    this.#show();
  }

  /** Let the message be changed. */
  edit() {
    const input = h("textarea", { "aria-label": "Edit the message", rows: "3", value: this.#message.content });
    const save = () => {
      const text = input.value.trim();
      if (text) this.#onEdit(text);
    };
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        save();
      } else if (event.key === "Escape") {
        event.preventDefault();
        this.#show();
        this.element.querySelector("button").focus();
      }
    });
    this.element.classList.add("editing");
    this.element.replaceChildren(
      input,
      h(
        "div",
        { class: "dialog-buttons" },
        h("button", { type: "button", onclick: () => this.#show() }, "Cancel"),
        h("button", { class: "main", type: "button", onclick: save }, "Ask again from here"),
      ),
    );
    input.focus();
    input.setSelectionRange(input.value.length, input.value.length);
  }

  #show() {
    const edit = h("button", { class: "bare small icon-only", type: "button", "aria-label": "Edit the message", title: "Edit", onclick: () => this.edit() }, icon("edit"));
    this.element.classList.remove("editing");
    this.element.replaceChildren(
      h("div", { class: "said" }, this.#message.content),
      h("div", { class: "message-foot" }, edit, copyButton("Copy the message", () => this.#message.content)),
    );
  }
}
