// The messages of the open conversation, and the place to which they are scrolled.

import { h } from "../lib/dom.js";
import { Trace } from "../tokens/trace.js";
import { AnswerView } from "./answer.js";
import { traceOf } from "./conversations.js";
import { QuestionView } from "./question.js";

const NEAR_END = 60;
const IDEAS = [
  "Tell me a story about a dog who finds a map.",
  "I need a table for two in San Jose tonight.",
  "I would like to find a train from London to Cambridge on Friday.",
];

/** Shows messages. */
export class Thread {
  #given;
  #list = h("div", { class: "thread-list" });
  #views = new Map();
  #isAtEnd = true;

  /** @param {{onAgain: Function, onEdit: Function, onIdea: Function}} given of a message each. */
  constructor(given) {
    this.#given = given;
    this.element = h(
      "div",
      { class: "thread", role: "region", "aria-label": "Conversation", tabindex: "0", onscroll: () => this.#onScroll() },
      this.#list,
    );
    new ResizeObserver(() => this.#keepAtEnd()).observe(this.#list);
    new ResizeObserver(() => this.#keepAtEnd()).observe(this.element);
  }

  /**
   * Show a conversation.
   *
   * @param {object} conversation
   * @param {import("./answer_run.js").AnswerRun | undefined} run that fills its last message.
   * @param {"text"|"tokens"} view of answers.
   */
  show(conversation, run, view) {
    this.#views.clear();
    this.#list.replaceChildren();
    conversation.messages.forEach((message, index) => {
      const isLast = index === conversation.messages.length - 1;
      this.add(message, isLast ? run : undefined, view);
    });
    if (!conversation.messages.length) this.#list.append(this.#welcome());
    this.toEnd();
  }

  /** Add a message at the end. */
  add(message, run, view) {
    this.#list.querySelector(".welcome")?.remove();
    const shown = message.role === "user" ? this.#question(message) : this.#answer(message, run, view);
    this.#views.set(message, shown);
    this.#list.append(shown.element);
  }

  /** Show all answers in one way. */
  showAs(view) {
    for (const shown of this.#views.values()) if (shown instanceof AnswerView) shown.show(view);
  }

  /** Let the last message of the user be changed; false = there is none. */
  editLast() {
    const questions = [...this.#views.values()].filter((shown) => shown instanceof QuestionView);
    questions.at(-1)?.edit();
    return questions.length > 0;
  }

  /** Go to the end, and stay there while it grows. */
  toEnd() {
    this.#isAtEnd = true;
    this.#keepAtEnd();
  }

  #question(message) {
    return new QuestionView(message, (text) => this.#given.onEdit(message, text));
  }

  #answer(message, run, view) {
    const shown = new AnswerView(message, {
      loadTrace: async () => new Trace(await traceOf(message)),
      onAgain: () => this.#given.onAgain(message),
    });
    if (run) shown.follow(run);
    else shown.showWhole();
    if (view === "tokens") shown.show(view);
    return shown;
  }

  #welcome() {
    return h(
      "div",
      { class: "welcome" },
      h("h1", {}, "The same words, sooner."),
      h("p", { class: "soft" }, "A small draft proposes, the model checks many tokens in one pass. Ask something, then look at the tokens to see who wrote what."),
      h("ul", { class: "ideas" }, IDEAS.map((idea) => h("li", {}, h("button", { type: "button", onclick: () => this.#given.onIdea(idea) }, idea)))),
    );
  }

  #onScroll() {
    const { scrollTop, scrollHeight, clientHeight } = this.element;
    this.#isAtEnd = scrollHeight - clientHeight - scrollTop < NEAR_END;
  }

  #keepAtEnd() {
    if (this.#isAtEnd) this.element.scrollTop = this.element.scrollHeight;
  }
}
