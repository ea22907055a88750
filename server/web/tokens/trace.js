// Where the tokens of one answer came from: the passes that the stream tells, and sums over them.

const DRAFTERS = {
  draft_model: "the draft model",
  ngram: "n-gram lookup",
  suffix: "suffix lookup",
  prediction: "the caller's prediction",
  grammar: "the grammar",
};

/** Give a drafter's name in words. */
export function drafterName(drafter) {
  return DRAFTERS[drafter] ?? drafter;
}

/** The passes of an answer, as they come. */
export class Trace {
  /** Each token as the stream tells it, with `pass`, the number of its pass. */
  tokens = [];
  passes = [];

  /** @param {Array<object>} passes those that are known already. */
  constructor(passes = []) {
    this.add(passes);
  }

  get isEmpty() {
    return this.tokens.length === 0;
  }

  /** Take passes, as the field `provenance` of a chunk has them. */
  add(passes) {
    for (const pass of passes) {
      const first = this.tokens.length;
      for (const token of pass.tokens) this.tokens.push({ ...token, pass: this.passes.length });
      this.passes.push({ ...pass, first });
    }
  }

  /** Give sums over all passes. */
  totals() {
    const totals = { passes: this.passes.length, tokens: this.tokens.length, proposed: 0, accepted: 0, ms: 0 };
    for (const pass of this.passes) {
      totals.proposed += pass.proposed;
      totals.accepted += pass.accepted;
      totals.ms += pass.ms;
    }
    return totals;
  }
}

/** Give tokens a second after the first pass, by the server's clock; null = that is not known. */
export function paceOf(trace) {
  const [first] = trace.passes;
  if (!first) return null;
  const { tokens, ms } = trace.totals();
  const rest = tokens - first.tokens.length;
  return rest > 0 && ms > first.ms ? (rest * 1000) / (ms - first.ms) : null;
}

/** Give the name of a token's shade: `target`, `grammar`, or who drafted it. */
export function shadeOf(token) {
  if (token.origin === "grammar") return "grammar";
  if (token.origin !== "draft") return "target";
  return Object.hasOwn(DRAFTERS, token.drafter) ? token.drafter : "other";
}

/** Give a token's text so that something can be seen of it. */
export function shownText(token) {
  if (token.text === "") return token.cut ? "⊣" : "▯";
  return token.text.replaceAll("\n", "⏎\n").replaceAll("\t", "⇥\t");
}

/** Say in a few words where a token came from. */
export function originOf(token) {
  if (token.origin === "grammar") return "Forced by the grammar";
  if (token.origin === "draft") return `Accepted draft of ${drafterName(token.drafter)}`;
  return "The target's own";
}

/** Write a share. */
export function percent(share) {
  if (share == null) return "–";
  const value = share * 100;
  return value > 0 && value < 10 ? `${value.toFixed(1)} %` : `${value.toFixed(0)} %`;
}

/** Write milliseconds. */
export function milliseconds(ms) {
  if (ms >= 1000) return `${(ms / 1000).toFixed(2)} s`;
  return `${ms < 10 ? ms.toFixed(2) : ms.toFixed(0)} ms`;
}
