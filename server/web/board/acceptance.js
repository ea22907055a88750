// Whose drafts were accepted, and at which position: tables with a bar in each row.

import { h } from "../lib/dom.js";
import { setText } from "./drawing.js";
import { count, written, UNITS } from "./units.js";

const COLUMNS = ["Accepted", "Proposed", "Share"];
// Shares of fewer tokens say little, and their bars look so.
const RARE = 30;
const DRAFTERS = {
  draft_model: "draft model",
  ngram: "n-gram",
  suffix: "suffixes",
  prediction: "prediction",
  grammar: "grammar",
};

export class AcceptanceTables {
  #positions = new BarTable("Acceptance by position", "Position");
  #drafters = new BarTable("Acceptance by drafter", "Drafter");

  constructor() {
    this.elements = [this.#positions.element, this.#drafters.element];
  }

  /** Show what became of the drafts of these samples together. */
  draw(samples) {
    const positions = new Map();
    const drafters = new Map();
    for (const sample of samples) {
      sample.by_position.forEach((counts, place) => add(positions, String(place + 1), counts));
      for (const [drafter, counts] of Object.entries(sample.by_drafter)) {
        add(drafters, DRAFTERS[drafter] ?? drafter, counts);
      }
    }
    this.#positions.draw(positions);
    this.#drafters.draw(drafters);
  }
}

class BarTable {
  #rows = new Map();
  #body = h("tbody");
  #empty = h("p", { class: "board-note" }, "no drafts yet");

  constructor(title, key) {
    const heads = [key, "", ...COLUMNS].map((name) =>
      name ? h("th", { scope: "col" }, name) : h("td"),
    );
    this.element = h(
      "section",
      { class: "board-panel board-bars", "aria-label": title },
      h("h3", {}, title),
      h("table", {}, h("thead", {}, h("tr", {}, ...heads)), this.#body),
      this.#empty,
    );
  }

  draw(counts) {
    const drafted = [...counts].filter(([, { proposed }]) => proposed > 0);
    this.#empty.hidden = drafted.length > 0;
    this.element.querySelector("table").hidden = drafted.length === 0;
    for (const [name, row] of this.#rows) row.element.hidden = !counts.get(name)?.proposed;
    for (const [name, own] of drafted) this.#row(name).draw(own);
  }

  #row(name) {
    if (!this.#rows.has(name)) {
      const row = new BarRow(name);
      this.#rows.set(name, row);
      this.#body.append(row.element);
    }
    return this.#rows.get(name);
  }
}

class BarRow {
  #bar = h("span", { class: "board-bar" });
  #cells = COLUMNS.map(() => h("td", { class: "board-number" }));

  constructor(name) {
    const track = h("td", { class: "board-track", "aria-hidden": "true" }, this.#bar);
    this.element = h("tr", {}, h("th", { scope: "row" }, name), track, ...this.#cells);
  }

  draw({ proposed, accepted }) {
    const share = accepted / proposed;
    this.#bar.classList.toggle("is-rare", proposed < RARE);
    this.#bar.style.setProperty("inline-size", `${(share * 100).toFixed(1)}%`);
    const texts = [count(accepted), count(proposed), written(share, UNITS.share)];
    this.#cells.forEach((cell, place) => setText(cell, texts[place]));
  }
}

function add(sums, name, { proposed, accepted }) {
  const sum = sums.get(name) ?? { proposed: 0, accepted: 0 };
  sums.set(name, { proposed: sum.proposed + proposed, accepted: sum.accepted + accepted });
}
