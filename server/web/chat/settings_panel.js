// The panel of settings: the conversation's system prompt, and how answers are sampled.

import { h } from "../lib/dom.js";

const NUMBERS = [
  ["temperature", "Temperature", { min: 0, max: 2, step: 0.1 }, "0 = the likeliest token, always"],
  ["topP", "Top p", { min: 0.01, max: 1, step: 0.01 }, "of the likeliest tokens, so much of the chance"],
  ["maxTokens", "Tokens at most", { min: 1, step: 1 }, "empty = as far as the context reaches"],
  ["seed", "Seed", { min: 0, step: 1 }, "empty = a new one for each answer"],
];
const SPECULATION = [
  ["auto", "as the server decides"],
  ["on", "at most so many drafts a pass"],
  ["off", "off: one token a pass"],
];

/** Shows settings, and tells of each change. */
export class SettingsPanel {
  #settings;
  #onChange;
  #maxDrafts;

  /**
   * @param {object} settings is changed in place.
   * @param {{onChange: () => void, onSystem: (text: string) => void, onClose: () => void}} given
   */
  constructor(settings, { onChange, onSystem, onClose }) {
    this.#settings = settings;
    this.#onChange = onChange;
    this.system = h("textarea", { id: "system", rows: "4", placeholder: "None", onchange: () => onSystem(this.system.value) });
    this.#maxDrafts = this.#number("maxDrafts", "Drafts a pass", { min: 1, max: 32, step: 1 }, "");
    this.element = h(
      "aside",
      { class: "settings", "aria-label": "Settings" },
      h("div", { class: "settings-head" }, h("h2", {}, "Settings"), h("button", { class: "bare small", type: "button", onclick: onClose }, "Close")),
      field("system", "System prompt", this.system, "of this conversation"),
      NUMBERS.map(([name, label, limits, hint]) => this.#number(name, label, limits, hint)),
      this.#speculation(),
      this.#maxDrafts,
      this.#number("alternatives", "Alternatives of each token", { min: 0, max: 20, step: 1 }, "shown in the token view; 0 = also no chances"),
    );
    this.#showMaxDrafts();
  }

  #number(name, label, limits, hint) {
    const input = h("input", { type: "number", id: `set-${name}`, placeholder: "server's default", inputmode: "decimal", ...limits, value: this.#settings[name] });
    if (name === "seed") input.placeholder = "random";
    if (name === "maxTokens") input.placeholder = "no limit";
    input.addEventListener("change", () => {
      if (!input.checkValidity()) {
        input.reportValidity();
        return;
      }
      this.#set(name, input.value);
    });
    return field(`set-${name}`, label, input, hint);
  }

  #speculation() {
    const options = SPECULATION.map(([value, label]) => h("option", { value }, label));
    const select = h("select", { id: "set-speculation" }, options);
    select.value = this.#settings.speculation;
    select.addEventListener("change", () => {
      this.#set("speculation", select.value);
      this.#showMaxDrafts();
    });
    return field("set-speculation", "Speculation", select, "it never changes the words");
  }

  #showMaxDrafts() {
    this.#maxDrafts.hidden = this.#settings.speculation !== "on";
  }

  #set(name, value) {
    this.#settings[name] = value;
    this.#onChange();
  }
}

function field(id, label, input, hint) {
  if (hint) input.setAttribute("aria-describedby", `${id}-hint`);
  return h(
    "div",
    { class: "field" },
    h("label", { for: id }, label),
    input,
    hint && h("p", { class: "hint soft", id: `${id}-hint` }, hint),
  );
}
