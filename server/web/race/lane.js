// One runner of the race: its answer as it comes, its clock and its pace.

import { ApiError, stream } from "../lib/api.js";
import { h } from "../lib/dom.js";
import { TokenView } from "../tokens/token_view.js";
import { Trace } from "../tokens/trace.js";

/** Runs one answer against the clock, and shows it. */
export class Lane {
  #clock = h("span", { class: "lane-clock numbers" });
  #counts = h("span", { class: "lane-counts soft numbers" });
  #state = h("span", { class: "lane-state soft" });
  #room = h("div", { class: "lane-room" });
  #frame = 0;
  #tokens = null;

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
    Object.assign(this, { text: "", numTokens: 0, trace: new Trace(), finish: null, ms: 0, paceMs: 0 });
    this.#start = this.#first = null;
    this.#tokens = null;
    this.#room.replaceChildren();
    this.#state.textContent = state;
    this.#drawFigures();
  }

  #start = null;
  #first = null;

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

  /** Tokens a second, from the first to the last. */
  get pace() {
    return this.numTokens > 1 && this.paceMs > 0 ? ((this.numTokens - 1) * 1000) / this.paceMs : null;
  }

  #take(chunk) {
    const now = performance.now();
    const [choice] = chunk.choices;
    if (choice?.delta.content) {
      this.#first ??= now;
      this.text += choice.delta.content;
    }
    if (choice) {
      this.finish = choice.finish_reason ?? this.finish;
      this.ms = now - this.#start;
      this.paceMs = this.#first === null ? 0 : now - this.#first;
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
    const pace = this.pace === null ? "–" : this.pace.toFixed(0);
    const passes = this.trace.passes.length;
    const each = passes ? ` · ${(this.trace.tokens.length / passes).toFixed(2)} a pass` : "";
    this.#counts.textContent = `${this.numTokens} tokens · ${pace} tokens/s${each}`;
  }
}
