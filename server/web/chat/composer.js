// Where a message is written, sent, and an answer stopped.

import { h } from "../lib/dom.js";
import { icon } from "../lib/icons.js";

/** The field for the next message. */
export class Composer {
  #given;
  #isBusy = false;
  #button = h("button", { class: "main icon-only send", type: "submit" });

  /** @param {{onSend: (text: string) => void, onStop: () => void, onEditLast: () => void}} given */
  constructor(given) {
    this.#given = given;
    this.input = h("textarea", {
      id: "composer",
      rows: "1",
      placeholder: "Write a message",
      "aria-label": "Message",
      oninput: () => this.#fit(),
      onkeydown: (event) => this.#onKey(event),
    });
    this.element = h(
      "form",
      {
        class: "composer",
        onsubmit: (event) => {
          event.preventDefault();
          this.#act();
        },
      },
      h("div", { class: "composer-field" }, this.input, this.#button),
      h("p", { class: "composer-hint soft" }, h("kbd", {}, "Enter"), " sends, ", h("kbd", {}, "Shift + Enter"), " begins a line, ", h("kbd", {}, "?"), " shows all keys"),
    );
    this.setBusy(false);
  }

  /** Say whether an answer is coming, which can be stopped. */
  setBusy(isBusy) {
    this.#isBusy = isBusy;
    const label = isBusy ? "Stop the answer" : "Send";
    this.#button.replaceChildren(icon(isBusy ? "stop" : "send"));
    this.#button.setAttribute("aria-label", label);
    this.#button.title = isBusy ? `${label} (Esc)` : `${label} (Enter)`;
    this.#button.classList.toggle("busy", isBusy);
  }

  #act() {
    if (this.#isBusy) {
      this.#given.onStop();
      return;
    }
    const text = this.input.value.trim();
    if (!text) return;
    this.input.value = "";
    this.#fit();
    this.#given.onSend(text);
  }

  #onKey(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      if (!this.#isBusy) this.#act();
    } else if (event.key === "ArrowUp" && !this.input.value) {
      event.preventDefault();
      this.#given.onEditLast();
    }
  }

  #fit() {
    this.input.style.setProperty("height", "auto");
    this.input.style.setProperty("height", `${Math.min(this.input.scrollHeight + 2, 220)}px`);
  }
}
