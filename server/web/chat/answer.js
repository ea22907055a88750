// How an answer looks: rendered or token by token, with what it took, and what can be done with it.

import { h, oncePerFrame } from "../lib/dom.js";
import { icon } from "../lib/icons.js";
import { copyButton } from "../lib/copy.js";
import { GrowingMarkdown } from "../markdown/growing.js";
import { legend } from "../tokens/legend.js";
import { PassStrip } from "../tokens/pass_strip.js";
import { TokenView } from "../tokens/token_view.js";
import { milliseconds, shadeOf } from "../tokens/trace.js";
import { errorBox } from "../lib/error_box.js";

const ENDS = {
  length: "The answer ended at its limit of tokens.",
  stopped: "The answer was stopped.",
  interrupted: "The answer was interrupted: the page was left.",
};

/** Shows one answer, and keeps up with it while it comes. */
export class AnswerView {
  #message;
  #loadTrace;
  #actions;
  #trace = null;
  #tokens = null;
  #strip = null;
  #isOver = false;
  #view = "text";
  #text = h("div", { class: "markdown" });
  #markdown = new GrowingMarkdown(this.#text);
  #tokenRoom = h("div", { class: "token-room", hidden: true });
  #thinking = h("details", { class: "thinking", hidden: true });
  #ending = h("div", {});
  #foot = h("div", { class: "message-foot" });
  #switch = h("button", { class: "bare small view-switch", type: "button", onclick: () => this.show(this.#view === "text" ? "tokens" : "text") });
  #draw = oncePerFrame(() => this.#drawNow());

  /**
   * @param {object} message
   * @param {{loadTrace: () => Promise<import("../tokens/trace.js").Trace>, onAgain: () => void}} given
   */
  constructor(message, { loadTrace, onAgain }) {
    this.#message = message;
    this.#loadTrace = loadTrace;
    this.#actions = { onAgain };
    this.element = h(
      "article",
      { class: "message assistant", "aria-label": "Answer", data: { id: message.id } },
      this.#thinking,
      this.#text,
      this.#tokenRoom,
      this.#ending,
      this.#foot,
    );
  }

  /** Show an answer that is over. */
  async showWhole() {
    this.#isOver = true;
    this.#drawNow();
  }

  /** Keep up with an answer that comes. */
  follow(run) {
    this.#trace = run.trace;
    run.listen(() => {
      this.#isOver = run.isOver;
      if (run.isOver) {
        this.#draw.cancel();
        this.#drawNow();
      } else this.#draw();
    });
    this.#drawNow();
  }

  /** Change between `text` and `tokens`. */
  async show(view) {
    this.#view = view;
    this.#trace ??= await this.#loadTrace();
    this.#drawNow();
  }

  #drawNow() {
    const message = this.#message;
    const hasTokens = this.#trace ? !this.#trace.isEmpty : Boolean(message.hasTrace);
    const inTokens = this.#view === "tokens" && this.#trace !== null && hasTokens;
    this.#text.hidden = inTokens;
    this.#tokenRoom.hidden = !inTokens;
    this.element.classList.toggle("coming", !this.#isOver);
    if (inTokens) this.#drawTokens();
    else if (this.#isOver) this.#markdown.finish(message.content);
    else this.#markdown.update(message.content);
    this.#drawThinking(inTokens);
    if (this.#isOver) this.#drawEnding(hasTokens, inTokens);
  }

  #drawTokens() {
    if (!this.#tokens) {
      this.#strip = new PassStrip(this.#trace);
      const passOf = (token) => (token < 0 ? -1 : this.#trace.tokens[token].pass);
      this.#tokens = new TokenView(this.#trace, (token) => this.#strip.choose(passOf(token)));
      this.#tokenRoom.append(this.#tokens.element, this.#strip.element);
    }
    this.#tokens.update();
    this.#strip.update();
    if (!this.#isOver) return;
    const found = new Set(this.#trace.tokens.map(shadeOf));
    this.#tokenRoom.querySelector(".legend")?.remove();
    this.#tokenRoom.append(legend(found));
  }

  #drawThinking(inTokens) {
    const { reasoning } = this.#message;
    this.#thinking.hidden = !reasoning || inTokens;
    if (!reasoning) return;
    if (!this.#thinking.firstChild) {
      this.#thinking.append(h("summary", {}, "Thinking"), h("p", { class: "plain" }));
    }
    this.#thinking.lastChild.textContent = reasoning;
  }

  #drawEnding(hasTokens, inTokens) {
    const message = this.#message;
    const ending = [];
    const end = ENDS[message.finish];
    if (end) ending.push(h("p", { class: "ending soft" }, end));
    if (message.error) ending.push(errorBox(message.error, this.#actions.onAgain));
    this.#ending.replaceChildren(...ending);
    const label = inTokens ? "Show the text" : "Show the tokens";
    this.#switch.replaceChildren(icon(inTokens ? "edit" : "tokens"), inTokens ? "Text" : "Tokens");
    this.#switch.setAttribute("aria-label", label);
    this.#switch.title = `${label} (Alt+T for all)`;
    this.#foot.replaceChildren(
      ...(hasTokens ? [this.#switch] : []),
      copyButton("Copy the answer", () => message.content),
      h("button", { class: "bare small icon-only", type: "button", "aria-label": "Answer anew", title: "Answer anew", onclick: this.#actions.onAgain }, icon("again")),
      h("span", { class: "took soft numbers" }, took(message)),
    );
  }
}

function took({ usage, ms, pace, seed }) {
  const parts = [];
  const count = usage?.completion_tokens;
  if (count) parts.push(`${count} tokens`);
  if (pace) parts.push(`${pace.toFixed(0)} tokens/s`);
  if (ms !== undefined) parts.push(milliseconds(ms));
  if (seed !== undefined) parts.push(`seed ${seed}`);
  return parts.join(" · ");
}
