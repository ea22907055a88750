// Lines over time, drawn as SVG: shapes alone; what is written beside them is the panel's.

import { setAttribute, svg } from "./drawing.js";

const WIDTH = 1000;
const HEIGHT = 100;
// A longer silence between two samples is shown as one: nothing is drawn through it.
const GAP_SECONDS = 5;

export class LineChart {
  #lines;
  #minutes = svg("path", { class: "board-minutes" });
  #area = svg("path", { class: "board-area" });
  #cursor = svg("path", { class: "board-cursor", d: "" });
  #marks;

  /** @param {string[]} styles a class for each line */
  constructor(styles) {
    this.#lines = styles.map((style) => svg("path", { class: `board-line ${style}` }));
    this.#marks = styles.map((style) => svg("path", { class: `board-mark ${style}`, d: "" }));
    this.element = svg(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
      this.#minutes,
      this.#area,
      ...this.#lines,
      this.#cursor,
      ...this.#marks,
    );
  }

  /**
   * Draw lines.
   * @param {{time: number}[]} samples oldest first
   * @param {((sample) => ?number)[]} reads gives each line's value in a sample
   * @param {{from: number, to: number, top: number}} frame seconds, and the value at the top
   */
  draw(samples, reads, frame) {
    setAttribute(this.#minutes, "d", minutesPath(frame));
    const runs = reads.map((read) => runsOf(samples, read, frame));
    runs.forEach((points, place) => setAttribute(this.#lines[place], "d", linePath(points)));
    setAttribute(this.#area, "d", reads.length === 1 ? areaPath(runs[0]) : "");
  }

  /**
   * Show where one looks.
   * @param {?{time: number}} sample null hides it
   * @param {((sample) => ?number)[]} reads as in `draw`
   * @param {{from: number, to: number, top: number}} frame as in `draw`
   */
  point(sample, reads, frame) {
    const x = sample && across(sample.time, frame);
    setAttribute(this.#cursor, "d", sample ? `M${x} 0V${HEIGHT}` : "");
    reads.forEach((read, place) => {
      const value = sample ? read(sample) : null;
      const d = value === null ? "" : `M${x} ${up(value, frame)}h0`;
      setAttribute(this.#marks[place], "d", d);
    });
  }
}

/** Give the next round number that a scale may end at. */
export function roundTop(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((step) => step * power >= value * 0.9999);
}

function runsOf(samples, read, frame) {
  const runs = [];
  let before = null;
  for (const sample of samples) {
    const value = read(sample);
    if (value !== null) {
      if (before === null || sample.time - before > GAP_SECONDS) runs.push([]);
      runs.at(-1).push([across(sample.time, frame), up(value, frame)]);
    }
    before = value === null ? null : sample.time;
  }
  return runs;
}

function across(time, frame) {
  return Math.round(((time - frame.from) / (frame.to - frame.from)) * WIDTH * 10) / 10;
}

function up(value, frame) {
  return Math.round((1 - Math.min(value / frame.top, 1)) * HEIGHT * 10) / 10;
}

function minutesPath({ from, to }) {
  const minutes = Math.round((to - from) / 60);
  return Array.from({ length: minutes }, (_, minute) => {
    return `M${Math.round((minute / minutes) * WIDTH)} 0V${HEIGHT}`;
  }).join("");
}

// A point alone is a line of no length, which round ends make a dot.
function linePath(runs) {
  return runs.map((points) => `M${points.join("L")}${points.length === 1 ? "h0" : ""}`).join("");
}

function areaPath(runs) {
  const closed = (points) => `M${points[0][0]} ${HEIGHT}L${points.join("L")}V${HEIGHT}Z`;
  return runs.map(closed).join("");
}
