// One small multiple: a title, the value now or where one looks, the lines, and their range.

import { h } from "../lib/dom.js";
import { setAttribute, setText } from "./drawing.js";
import { LineChart, roundTop } from "./line_chart.js";
import { atScale, clock, count, range, written } from "./units.js";

const USUAL_SHARE = 0.9;

export class Panel {
  #chart;
  #values;
  #range = h("span", { class: "board-range" });
  #total = h("span", { class: "board-total" });
  #scale = h("span", {});
  #frame = { from: 0, to: 1, top: 1 };
  #last = null;

  /** @param {import("./measures.js").Measure} measure */
  constructor(measure) {
    this.measure = measure;
    this.reads = measure.lines.map((line) => line.read);
    this.#chart = new LineChart(measure.lines.map((line) => line.style));
    this.#values = measure.lines.map((line) => valueOf(line, measure.lines.length > 1));
    this.plot = plotOf(measure, this.#chart.element);
    const scale = h("div", { class: "board-scale", "aria-hidden": "true" }, this.#scale, "0");
    this.element = h(
      "section",
      { class: "board-panel", "aria-label": measure.title, "data-measure": measure.id },
      h("h3", {}, measure.title),
      h("p", { class: "board-values" }, ...this.#values.map((value) => value.element)),
      h("div", { class: "board-drawing" }, this.plot, scale),
      h("p", { class: "board-foot" }, this.#range, this.#total),
    );
  }

  /**
   * Draw anew.
   * @param {Object[]} samples of the time shown, oldest first
   * @param {{from: number, to: number}} span seconds
   * @param {?Object} looked the sample one looks at, null for the last
   * @param {Record<string, number>} totals as `/metrics` has them
   */
  draw(samples, span, looked, totals) {
    const values = valuesOf(samples, this.reads);
    const [low, high] = [values[0] ?? null, values.at(-1) ?? null];
    const usual = values[Math.floor(values.length * USUAL_SHARE)] ?? null;
    const top = this.measure.top ?? roundTop(this.measure.isSpiky ? usual : high);
    this.#frame = { ...span, top };
    this.#last = samples.at(-1) ?? null;
    this.#chart.draw(samples, this.reads, this.#frame);
    setText(this.#scale, high === null ? "" : atScale(top, this.measure.unit));
    setText(this.#range, rangeText(low, high, this.measure));
    const total = totals[this.measure.total];
    setText(this.#total, total === undefined ? "" : `${count(total)} in all`);
    this.point(looked);
  }

  /** Show the values of a sample, those of the last for null. */
  point(looked) {
    const sample = looked ?? this.#last;
    const values = this.reads.map((read) => (sample ? read(sample) : null));
    const largest = Math.max(...values);
    this.#values.forEach(({ figure, unit }, place) => {
      const [digits, name] = this.measure.unit.text(values[place], largest);
      setText(figure, digits);
      setText(unit, place === values.length - 1 ? name : "");
    });
    this.#chart.point(looked, this.reads, this.#frame);
  }

  /** Tell a screen reader where one looks, and what is there. */
  speak(looked) {
    const sample = looked ?? this.#last;
    const back = sample ? Math.round(sample.time - this.#frame.to) : 0;
    setAttribute(this.plot, "aria-valuemin", Math.round(this.#frame.from - this.#frame.to));
    setAttribute(this.plot, "aria-valuenow", back);
    setAttribute(this.plot, "aria-valuetext", sample ? this.#sentence(sample) : "no values yet");
  }

  #sentence(sample) {
    const { lines, unit } = this.measure;
    const values = lines.map((line) => {
      const text = written(line.read(sample), unit);
      return lines.length > 1 ? `${line.name} ${text}` : text;
    });
    return `${values.join(", ")} at ${clock(sample.time)}`;
  }
}

function plotOf(measure, drawing) {
  const attributes = {
    class: "board-plot",
    role: "slider",
    tabindex: "-1",
    "aria-label": `${measure.title} over time`,
    "aria-valuemin": "-300",
    "aria-valuemax": "0",
    "aria-valuenow": "0",
    "aria-valuetext": "now",
  };
  return h("div", attributes, drawing);
}

function valueOf(line, isOneOfSeveral) {
  const figure = h("span", { class: "board-figure" });
  const unit = h("span", { class: "board-unit" });
  const name = isOneOfSeveral ? [h("span", { class: `board-name ${line.style}` }, line.name)] : [];
  return { element: h("span", { class: "board-value" }, ...name, figure, unit), figure, unit };
}

/** All values, the lowest first. */
function valuesOf(samples, reads) {
  const values = samples.flatMap((sample) => reads.map((read) => read(sample)));
  return values.filter((value) => value !== null).sort((a, b) => a - b);
}

function rangeText(low, high, measure) {
  if (low === null) return measure.silent ?? "nothing yet";
  return range(low, high, measure.unit);
}
