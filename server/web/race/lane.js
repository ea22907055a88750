// One runner of the race: its answer as it comes, its clock and its pace.

import { ApiError, stream } from "../lib/api.js";
import { h } from "../lib/dom.js";
import { TokenView } from "../tokens/token_view.js";
import { Trace, paceOf } from "../tokens/trace.js";

/** Runs one answer against the clock, and shows it. */
export class Lane {
  #clock = h("span", { class: "lane-clock numbers" });
  #counts = h("span", { class: "lane-counts soft numbers" });
  #state = h("span", { class: "lane-state soft" });
  #room = h("div", { class: "lane-room" });
  #frame = 0;
  #tokens = null;
  #start = null;

  /**
   * @param {string} title
   * @param {string} name
   */
  constructor(title, name) {
    this.element = h(
      "section",
      { class: "lane", "aria-label": title, data: { lane: name } },
      h("div", { class: "lane-head" }, h("h2", {}, title), this.#state),
      h("p", { class: "lane-figures" }, this.#clock, this.#counts),
      this.#room,
    );
    this.reset("");
  }

  /** Be as before the start. */
  reset(state) {
    Object.assign(this, { text: "", numTokens: 0, trace: new Trace(), finish: null, ms: 0 });
    this.#start = null;
    this.#tokens = null;
    this.#room.replaceChildren();
    this.#state.textContent = state;
    this.#drawFigures();
  }

  /**
   * Run.
   *
   * @param {object} body of the request.
   * @param {AbortSignal} signal
   * @throws {ApiError} what the server refused.
   */
  async run(body, signal) {
    this.reset("running");
    this.element.classList.add("running");
    this.#start = performance.now();
    this.#draw();
    try {
      for await (const chunk of stream("v1/chat/completions", body, signal)) this.#take(chunk);
      this.#state.textContent = this.finish === "length" ? "at the limit of tokens" : "finished";
    } catch (error) {
      this.#state.textContent = error instanceof ApiError ? "failed" : "stopped";
      throw error;
    } finally {
      cancelAnimationFrame(this.#frame);
      this.element.classList.remove("running");
      this.#start = null;
      this.#drawText();
      this.#drawFigures();
    }
  }

  /** Milliseconds that the answer took: by the server's clock where it is told, else by the page's. */
  get tookMs() {
    return this.trace.isEmpty ? this.ms : this.trace.totals().ms;
  }

  #take(chunk) {
    const now = performance.now();
    const [choice] = chunk.choices;
    if (choice?.delta.content) {
      this.text += choice.delta.content;
    }
    if (choice) {
      this.finish = choice.finish_reason ?? this.finish;
      this.ms = now - this.#start;
    }
    if (chunk.usage) this.numTokens = chunk.usage.completion_tokens;
    if (chunk.provenance) this.trace.add(chunk.provenance.passes);
  }

  #draw() {
    this.#frame = requestAnimationFrame(() => {
      this.#drawText();
      this.#drawFigures();
      this.#draw();
    });
  }

  #drawText() {
    if (this.trace.isEmpty) {
      if (this.#room.textContent !== this.text) this.#room.textContent = this.text;
      return;
    }
    if (!this.#tokens) {
      this.#tokens = new TokenView(this.trace, () => {});
      this.#room.replaceChildren(this.#tokens.element);
    }
    this.#tokens.update();
  }

  #drawFigures() {
    const ms = this.#start === null ? this.ms : performance.now() - this.#start;
    this.#clock.textContent = `${(ms / 1000).toFixed(2)} s`;
    const known = this.#start === null ? paceOf(this.trace) : null;
    const pace = known ?? (ms > 0 ? (this.numTokens * 1000) / ms : 0);
    const passes = this.trace.passes.length;
    const each = passes ? ` · ${(this.trace.tokens.length / passes).toFixed(2)} a pass` : "";
    this.#counts.textContent = `${this.numTokens} tokens · ${pace.toFixed(0)} tokens/s${each}`;
  }
}
