// Who was faster, and whether both said the same.

import { h } from "../lib/dom.js";

/**
 * Compare two lanes that are finished.
 *
 * @param {import("./lane.js").Lane} plain
 * @param {import("./lane.js").Lane} drafted
 * @returns {{isIdentical: boolean, differsAt: number, speedup: number}}
 *   `differsAt` counts characters; -1 = nowhere.
 */
export function compare(plain, drafted) {
  const differsAt = firstDifference(plain.text, drafted.text);
  const ids = (lane) => lane.trace.tokens.map(({ id }) => id).join();
  const isIdentical = differsAt < 0 && ids(plain) === ids(drafted) && plain.finish === drafted.finish;
  return {
    isIdentical,
    differsAt,
    speedup: plain.tookMs / drafted.tookMs,
  };
}

/** Show what a comparison found. */
export function verdict(found, plain, drafted, isAtOnce) {
  return h(
    "div",
    { class: `verdict ${found.isIdentical ? "same" : "other"}` },
    h("p", { class: "verdict-words" }, found.isIdentical ? "✓ Identical" : "✗ Different"),
    h("p", {}, wordsOf(found, plain)),
    h("p", { class: "verdict-speed numbers" }, `${found.speedup.toFixed(2)}×`),
    h("p", {}, speedOf(found, plain, drafted, isAtOnce)),
  );
}

function wordsOf({ isIdentical, differsAt }, plain) {
  if (isIdentical) {
    const ids = plain.trace.isEmpty ? "" : ", token for token";
    return `Both wrote the same ${plain.numTokens} tokens${ids}.`;
  }
  if (differsAt < 0) return "The texts are the same, but not their tokens or their ends.";
  const around = plain.text.slice(Math.max(0, differsAt - 20), differsAt);
  return `They part after ${differsAt} characters, behind “…${around}”. Two tokens whose scores tie within rounding can swap: a pass over several rows rounds differently from one over a single row.`;
}

function speedOf({ speedup }, plain, drafted, isAtOnce) {
  const clock = plain.trace.isEmpty || drafted.trace.isEmpty ? "page's" : "server's";
  const times = `By the ${clock} clock the answer took ${seconds(drafted)} with speculation and ${seconds(plain)} without`;
  const slower = speedup < 1 ? ": this time it was slower" : "";
  const shared = isAtOnce ? " Both shared the machine, so neither time is what one alone would take." : "";
  return `${times}${slower}.${shared} One race on one machine is an example, not a measurement.`;
}

function seconds(lane) {
  return `${(lane.tookMs / 1000).toFixed(2)} s`;
}

function firstDifference(one, other) {
  const end = Math.max(one.length, other.length);
  for (let i = 0; i < end; i += 1) if (one[i] !== other[i]) return i;
  return -1;
}
