// All charts as one table, for who cannot see lines or wants to read the numbers off.

import { h } from "../lib/dom.js";
import { clock, written } from "./units.js";

const ROWS = 20;

export class ValuesTable {
  #columns;
  #body = h("tbody");

  /** @param {import("./measures.js").Measure[]} measures */
  constructor(measures) {
    this.#columns = measures.flatMap(({ title, unit, lines }) =>
      lines.map((line) => ({
        title: lines.length > 1 ? `${title}, ${line.name}` : title,
        unit,
        read: line.read,
      })),
    );
    const heads = ["Time", ...this.#columns.map(({ title }) => title)];
    const head = h("tr", {}, ...heads.map((title) => h("th", { scope: "col" }, title)));
    const caption = h("caption", { class: "unseen" }, "Values over the time shown");
    this.element = h(
      "details",
      { class: "board-table" },
      h("summary", {}, "All values as a table"),
      h(
        "div",
        { class: "board-scroll", tabindex: "0", role: "region", "aria-label": "All values" },
        h("table", {}, caption, h("thead", {}, head), this.#body),
      ),
    );
  }

  /** Write evenly spaced samples, the newest first, where somebody has opened the table. */
  draw(samples) {
    if (!this.element.open) return;
    const every = Math.max(Math.ceil(samples.length / ROWS), 1);
    const chosen = samples.filter((_, place) => (samples.length - 1 - place) % every === 0);
    this.#body.replaceChildren(...chosen.reverse().map((sample) => this.#row(sample)));
  }

  #row(sample) {
    const cells = this.#columns.map(({ unit, read }) => h("td", {}, written(read(sample), unit)));
    return h("tr", {}, h("th", { scope: "row" }, clock(sample.time)), ...cells);
  }
}
