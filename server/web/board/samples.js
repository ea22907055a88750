// The samples of the board: what the server sends, and what follows from it.

import { History } from "./history.js";
import { missedDrafts } from "./missed.js";

export const LONGEST_SPAN_SECONDS = 600;
export const INTERVAL_SECONDS = 1;
// Twice what is shown, as timers of a busy server do not keep to the second.
const CAPACITY = (2 * LONGEST_SPAN_SECONDS) / INTERVAL_SECONDS;

export class Samples {
  history = new History(CAPACITY);
  /** Counters and gauges as `/metrics` has them, of the last event; null before the first. */
  totals = null;
  #isFirst = true;

  /** Take an event in; says whether there is something new. */
  take({ event, data }) {
    if (event === "history") this.#takeHistory(JSON.parse(data).samples);
    else if (event === "statistics") this.#takeStatistics(JSON.parse(data));
    else return false;
    return true;
  }

  #takeHistory(samples) {
    this.#isFirst = samples.length === 0;
    // The oldest may have been the server's first look, of which no rate is known.
    for (const sample of samples.slice(1)) this.#push(sample);
  }

  #takeStatistics({ totals, ...sample }) {
    this.#push(this.#isFirst ? { ...sample, ...this.#beforeFirst(totals) } : sample);
    this.#isFirst = false;
    this.totals = totals;
  }

  // Nothing was there to compare the server's first look with: a gap, and not a zero. What this
  // board saw before it, it can count from.
  #beforeFirst(totals) {
    const missed = this.totals && missedDrafts(this.totals, totals);
    return { ...missed, tokens_per_second: null, prompt_tokens_per_second: null };
  }

  #push(sample) {
    if (sample.time <= (this.history.last?.time ?? -Infinity)) return;
    const minute = this.history.since(sample.time - 60);
    const before = minute.reduce((sum, other) => sum + other.preemptions, 0);
    this.history.push({
      ...sample,
      kv_usage: sample.kv_blocks_total ? sample.kv_blocks_used / sample.kv_blocks_total : null,
      preemptions_per_minute: before + sample.preemptions,
    });
  }
}
