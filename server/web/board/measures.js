// What the board shows, in order: each measure's name, unit, and where it lies in a sample.

import { UNITS } from "./units.js";

/**
 * @typedef {Object} Measure
 * @property {string} id
 * @property {string} title
 * @property {import("./units.js").Unit} unit
 * @property {{name: string, style: string, read: (sample) => ?number}[]} lines
 * @property {number} [top] the value at the top of the scale; by default what fits
 * @property {boolean} [isSpiky] whether the scale fits what is usual, so that one value that is far
 *   off leaves the others legible
 * @property {string} [total] a counter of `/metrics` whose count is written beside the range
 * @property {string} [silent] what is said where no sample has a value
 */

const FIRST = "is-first";
const SECOND = "is-second";
const BETWEEN = "is-between";

/** @type {Measure} */
export const TOKENS_PER_SECOND = {
  ...single("tokens_per_second", "Tokens per second", UNITS.tokensPerSecond),
  total: "outdraft:generation_tokens_total",
  silent: "no tokens yet",
};

/** @type {Measure[]} */
export const MEASURES = [
  single("tokens_per_target_pass", "Tokens per target pass", UNITS.tokensPerPass),
  single("draft_tokens_per_pass", "Drafts per pass (k)", UNITS.drafts),
  {
    ...single("acceptance_rate", "Drafts accepted", UNITS.share),
    top: 1,
    total: "outdraft:spec_decode_num_accepted_tokens_total",
    silent: "no drafts yet",
  },
  single("estimated_speedup", "Estimated speed-up", UNITS.times),
  {
    id: "requests",
    title: "Requests",
    unit: UNITS.requests,
    lines: [
      { name: "running", style: FIRST, read: (sample) => sample.requests_running },
      { name: "waiting", style: SECOND, read: (sample) => sample.requests_waiting },
    ],
  },
  single("tokens_per_step", "Batch", UNITS.tokensPerStep),
  { ...single("kv_usage", "KV cache in use", UNITS.share), top: 1 },
  {
    ...single("prefix_hit_rate", "Prompt tokens from the prefix cache", UNITS.share),
    top: 1,
    silent: "no prompts yet",
  },
  percentiles("ttft_ms", "Time to first token"),
  percentiles("itl_ms", "Time between tokens"),
  {
    ...single("prompt_tokens_per_second", "Prompt tokens per second", UNITS.tokensPerSecond),
    total: "outdraft:prompt_tokens_total",
  },
  {
    ...single("preemptions_per_minute", "Preemptions", UNITS.perMinute),
    total: "outdraft:num_preemptions_total",
  },
];

/** @type {Measure} shown where the server has a price */
export const COST = {
  ...single("cost_per_million_tokens", "Cost, in the price's currency", UNITS.perMillion),
  // A second with one token costs as much as one with a thousand.
  isSpiky: true,
  silent: "no tokens yet",
};

function single(id, title, unit) {
  return { id, title, unit, lines: [{ name: title, style: FIRST, read: (sample) => sample[id] }] };
}

function percentiles(id, title) {
  const line = (name, style) => ({ name, style, read: (sample) => sample[id]?.[name] ?? null });
  return {
    id,
    title,
    unit: UNITS.milliseconds,
    lines: [line("p50", FIRST), line("p90", BETWEEN), line("p99", SECOND)],
    silent: "no tokens in the last minute",
  };
}
