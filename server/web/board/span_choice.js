// How much of the past the time axis shows.

import { h } from "../lib/dom.js";
import { LONGEST_SPAN_SECONDS } from "./samples.js";

const MINUTES = [2, 5, LONGEST_SPAN_SECONDS / 60];
const DEFAULT_MINUTES = 5;

export class SpanChoice {
  seconds = DEFAULT_MINUTES * 60;

  /** @param {() => void} onChange */
  constructor(onChange) {
    this.element = h(
      "fieldset",
      { class: "board-spans" },
      h("legend", {}, "Last"),
      ...MINUTES.map((minutes) => this.#option(minutes, onChange)),
    );
  }

  #option(minutes, onChange) {
    const choose = () => {
      this.seconds = minutes * 60;
      onChange();
    };
    const input = h("input", {
      type: "radio",
      name: "board-span",
      value: String(minutes),
      checked: minutes === DEFAULT_MINUTES,
      onchange: choose,
    });
    return h("label", {}, input, h("span", {}, `${minutes} min`));
  }
}
