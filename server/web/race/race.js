// The race: the same prompt and seed, without speculation and with it.

import { stream } from "../lib/api.js";
import { announce, h } from "../lib/dom.js";
import { icon } from "../lib/icons.js";
import { servedModel } from "../lib/server_state.js";
import { randomSeed } from "../chat/settings.js";
import { legend } from "../tokens/legend.js";
import { shadeOf } from "../tokens/trace.js";
import { errorBox, toldError } from "../lib/error_box.js";
import { Lane } from "./lane.js";
import { compare, verdict } from "./verdict.js";

const PROMPT = "Tell me a story about a dog who finds a map.";
const WARM_TOKENS = 8;
const WHY = {
  turn: "One after the other, without speculation first: at once they would share the machine, and each would be timed under the other's load.",
  once: "At once: a spectacle, not a measurement. Both share the machine, and the draft's work slows the other lane, too.",
};

/** Show the race in an element. */
export function mountRace(element) {
  new Race(element);
}

class Race {
  #abort = null;
  #plain = new Lane("Without speculation", "plain");
  #drafted = new Lane("With speculation", "drafted");
  #result = h("div", { class: "result", role: "status" });
  #legend = h("div", {});
  #why = h("p", { class: "soft race-why" });
  #button = h("button", { class: "main", type: "submit" });

  constructor(element) {
    const number = (id, value, limits) => h("input", { type: "number", id, value, required: true, ...limits });
    this.prompt = h("textarea", { id: "race-prompt", rows: "2", required: true, value: PROMPT, onkeydown: (event) => this.#onKey(event) });
    this.maxTokens = number("race-tokens", "160", { min: 1, step: 1 });
    this.temperature = number("race-temperature", "0.8", { min: 0, max: 2, step: 0.1 });
    this.seed = number("race-seed", String(randomSeed()), { min: 0, step: 1 });
    this.mode = h("select", { id: "race-mode", onchange: () => this.#showWhy() }, h("option", { value: "turn" }, "one after the other"), h("option", { value: "once" }, "at once"));
    element.append(
      h("div", { class: "race" }, h("h1", {}, "The race"), this.#form(), this.#result, h("div", { class: "lanes" }, this.#plain.element, this.#drafted.element), this.#legend),
    );
    this.#setBusy(false);
    this.#showWhy();
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !element.hidden && this.#abort) this.#abort.abort();
    });
  }

  #form() {
    const field = (label, input) => h("div", { class: "field" }, h("label", { for: input.id }, label), input);
    const dice = h("button", { type: "button", class: "bare icon-only", "aria-label": "Another seed", title: "Another seed", onclick: () => { this.seed.value = String(randomSeed()); } }, icon("again"));
    return h(
      "form",
      {
        class: "race-form",
        onsubmit: (event) => {
          event.preventDefault();
          if (this.#abort) this.#abort.abort();
          else this.#run();
        },
      },
      field("Prompt", this.prompt),
      h(
        "div",
        { class: "race-settings" },
        field("Tokens at most", this.maxTokens),
        field("Temperature", this.temperature),
        h("div", { class: "field" }, h("label", { for: "race-seed" }, "Seed, of both"), h("div", { class: "with-button" }, this.seed, dice)),
        h("div", { class: "field whole-row" }, h("label", { for: "race-mode" }, "Run"), this.mode),
        this.#button,
      ),
      this.#why,
    );
  }

  #onKey(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!this.#abort) this.prompt.form.requestSubmit();
  }

  #showWhy() {
    this.#why.textContent = WHY[this.mode.value];
  }

  #setBusy(isBusy) {
    this.#button.replaceChildren(icon(isBusy ? "stop" : "flag"), isBusy ? "Stop" : "Race");
  }

  async #run() {
    this.#abort = new AbortController();
    const { signal } = this.#abort;
    this.#setBusy(true);
    this.#result.replaceChildren(h("p", { class: "soft" }, "Warming up, unmeasured …"));
    this.#legend.replaceChildren();
    this.#plain.reset("waits");
    this.#drafted.reset("waits");
    const isAtOnce = this.mode.value === "once";
    try {
      await this.#warmUp(signal);
      this.#result.replaceChildren();
      const plain = () => this.#lane(this.#plain, false, signal);
      const drafted = () => this.#lane(this.#drafted, true, signal);
      if (isAtOnce) await this.#both(plain, drafted);
      else await plain().then(drafted);
      this.#showResult(isAtOnce);
    } catch (error) {
      this.#showFailure(error, signal);
    }
    this.#abort = null;
    this.#setBusy(false);
  }

  async #both(plain, drafted) {
    const ended = await Promise.allSettled([plain(), drafted()]);
    const failed = ended.find(({ status }) => status === "rejected");
    if (failed) throw failed.reason;
  }

  /** What the first answer of a kind costs once is nobody's time. */
  async #warmUp(signal) {
    for (const isDrafted of [false, true]) {
      const body = { ...(await this.#body(isDrafted)), max_tokens: WARM_TOKENS };
      for await (const chunk of stream("v1/chat/completions", body, signal)) void chunk;
    }
  }

  async #lane(lane, isDrafted, signal) {
    await lane.run(await this.#body(isDrafted), signal);
  }

  async #body(isDrafted) {
    const { name } = await servedModel();
    return {
      model: name,
      messages: [{ role: "user", content: this.prompt.value }],
      max_tokens: Number(this.maxTokens.value),
      temperature: Number(this.temperature.value),
      seed: Number(this.seed.value),
      stream: true,
      stream_options: { include_usage: true, continuous_usage_stats: true },
      speculation: isDrafted ? { report: true } : { enabled: false, report: true },
      // A salt of its own: no lane finds the other's prompt in the cache, or its answer as a draft.
      cache_salt: `race-${randomSeed()}-${isDrafted}`,
    };
  }

  #showResult(isAtOnce) {
    const found = compare(this.#plain, this.#drafted);
    this.#result.replaceChildren(verdict(found, this.#plain, this.#drafted, isAtOnce));
    const shades = [this.#plain, this.#drafted].flatMap((lane) => lane.trace.tokens.map(shadeOf));
    if (shades.length) this.#legend.replaceChildren(legend(new Set(shades)));
    announce(found.isIdentical ? "The race is over; the texts are identical." : "The race is over; the texts differ.");
  }

  #showFailure(error, signal) {
    if (signal.aborted) {
      this.#result.replaceChildren(h("p", { class: "soft" }, "The race was stopped."));
      return;
    }
    this.#result.replaceChildren(errorBox(toldError(error), () => this.#run()));
  }
}
