// The live board: what the engine does, second by second, as small multiples over one time axis.
// It shows counts and times alone; no text of any request comes this way.

import { h, oncePerFrame } from "../lib/dom.js";
import { AcceptanceTables } from "./acceptance.js";
import { watchAttention } from "./attention.js";
import { Cursor } from "./cursor.js";
import { setText } from "./drawing.js";
import { KeyForm, storedKey } from "./key_form.js";
import { COST, MEASURES, TOKENS_PER_SECOND } from "./measures.js";
import { Panel } from "./panel.js";
import { INTERVAL_SECONDS, Samples } from "./samples.js";
import { SpanChoice } from "./span_choice.js";
import { StatusLine } from "./status_line.js";
import { StatisticsStream } from "./stream.js";
import { clock } from "./units.js";
import { ValuesTable } from "./values_table.js";

/**
 * Show the board in an element.
 * @param {HTMLElement} element
 * @param {{apiKey?: string | (() => string)}} options the key that the page knows already
 * @returns {() => void} takes the board away and ends its connection
 */
export function mountBoard(element, { apiKey = "" } = {}) {
  const board = new Board(typeof apiKey === "function" ? apiKey : () => apiKey);
  element.append(board.element);
  board.start();
  return () => board.stop();
}

class Board {
  samples = new Samples();
  #lead = new Panel(TOKENS_PER_SECOND);
  #cost = new Panel(COST);
  #panels = [this.#lead, this.#cost, ...MEASURES.map((measure) => new Panel(measure))];
  #acceptance = new AcceptanceTables();
  #table = new ValuesTable([TOKENS_PER_SECOND, COST, ...MEASURES]);
  #moment = h("span", { class: "board-moment" });
  #draw = oncePerFrame(() => this.#drawAll());
  #point = oncePerFrame(() => this.#pointAll());
  #cursor = new Cursor(this.#panels, this.#point);
  #span = new SpanChoice(this.#draw);
  #status = new StatusLine(() => this.#stream.connect());
  #key = new KeyForm(() => this.#stream.connect());
  #past = h("div", { class: "board-past" }, this.#moment, this.#span.element);
  #numbers;
  #stream;
  #attention = null;

  constructor(readKey) {
    const address = `statistics?interval_s=${INTERVAL_SECONDS}`;
    this.#stream = new StatisticsStream(
      address,
      () => storedKey() || readKey(),
      (event) => this.samples.take(event) && this.#draw(),
      (state) => this.#show(state),
    );
    this.#lead.element.classList.add("board-lead");
    this.#cost.element.hidden = true;
    this.#table.element.addEventListener("toggle", this.#draw);
    this.#numbers = this.#arrange();
    this.element = h(
      "div",
      { class: "board" },
      h(
        "header",
        { class: "board-head" },
        h("h2", {}, "Board"),
        this.#status.element,
        this.#past,
      ),
      this.#key.element,
      this.#numbers,
    );
  }

  start() {
    this.#attention = watchAttention(this.element, {
      onLook: () => this.#look(),
      onLeave: () => this.#stream.rest(),
    });
    this.#stream.connect();
  }

  stop() {
    this.#attention.stop();
    this.#stream.rest();
    this.#status.stop();
    this.#draw.cancel();
    this.#point.cancel();
    this.element.remove();
  }

  #arrange() {
    return h(
      "div",
      { class: "board-numbers" },
      h("div", { class: "board-grid" }, ...this.#panels.map((panel) => panel.element)),
      h("div", { class: "board-pair" }, ...this.#acceptance.elements),
      this.#table.element,
    );
  }

  #look() {
    this.#stream.wake();
    this.#draw();
  }

  #show(state) {
    this.#status.showState(state);
    this.#numbers.hidden = this.#past.hidden = state.name === "forbidden";
    this.#numbers.classList.toggle("is-old", state.name === "lost" || state.name === "resting");
    if (state.name === "forbidden") this.#key.ask(state.why);
    else this.#key.hide();
  }

  #drawAll() {
    const { history } = this.samples;
    if (history.last === null || !this.#attention.isSeen()) return;
    const to = history.last.time;
    const span = { from: to - this.#span.seconds, to };
    const shown = history.since(span.from);
    this.#cursor.follow(span);
    this.#status.showSample(history.last);
    this.#cost.element.hidden = history.last.price_per_hour === null;
    for (const panel of this.#panels) panel.draw(shown, span, this.#looked(), this.samples.totals ?? {});
    this.#acceptance.draw(shown);
    this.#table.draw(shown);
    this.#writeMoment();
  }

  #pointAll() {
    for (const panel of this.#panels) panel.point(this.#looked());
    this.#writeMoment();
    const spoken = this.#panels.find((panel) => panel.plot === document.activeElement);
    spoken?.speak(this.#looked());
  }

  #looked() {
    const { time } = this.#cursor;
    return time === null ? null : this.samples.history.nearest(time);
  }

  #writeMoment() {
    const sample = this.#looked();
    setText(this.#moment, sample ? `at ${clock(sample.time)}` : "");
  }
}
