// What the shades mean.

import { h } from "../lib/dom.js";

const SHADES = [
  ["draft_model", "accepted draft of the draft model"],
  ["ngram", "of n-gram lookup"],
  ["suffix", "of suffix lookup"],
  ["prediction", "of the caller's prediction"],
  ["grammar", "forced by a grammar"],
  ["target", "the target's own"],
];

/**
 * Make the legend, with the shades that an answer has.
 *
 * @param {Set<string>} found
 */
export function legend(found) {
  const rows = SHADES.filter(([shade]) => found.has(shade)).map(([shade, meaning]) =>
    h("li", {}, h("span", { class: `token by-${shade}` }, "abc"), ` ${meaning}`),
  );
  return h(
    "ul",
    { class: "legend", "aria-label": "What the shades mean" },
    rows,
    h("li", {}, h("del", { class: "rejected" }, "abc"), " rejected"),
    h("li", { class: "soft" }, "the deeper the shade, the surer"),
  );
}
