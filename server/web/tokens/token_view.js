// An answer token by token, each in the shade of where it came from. Far from what can be seen, the
// tokens of a stretch are one piece of text that takes the same room, so long answers stay light.

import { h } from "../lib/dom.js";
import { hideCard, showCard } from "./token_card.js";
import { shadeOf, shownText } from "./trace.js";

const PER_STRETCH = 200;
const NEAR = "600px";

/** Shows a trace's tokens. */
export class TokenView {
  #trace;
  #element;
  #stretches = [];
  #numShown = 0;
  #chosen = -1;
  /** A page that scrolls under a resting pointer must not take the choice from the keys. */
  #isByKeys = false;
  #onChoose;
  #seen = new IntersectionObserver((entries) => entries.forEach(drawByDistance), {
    rootMargin: `${NEAR} 0px`,
  });

  /**
   * @param {import("./trace.js").Trace} trace
   * @param {(token: number) => void} onChoose hears which token is looked at; -1 = none.
   */
  constructor(trace, onChoose) {
    this.#trace = trace;
    this.#onChoose = onChoose;
    this.#element = h("div", {
      class: "tokens",
      role: "group",
      tabindex: "0",
      "aria-label": "Tokens of the answer. The arrow keys go from one to the next.",
      onpointerover: (event) => this.#onPoint(event),
      onpointerleave: () => this.#isByKeys || this.choose(-1),
      onpointermove: (event) => {
        if (event.movementX || event.movementY) this.#isByKeys = false;
      },
      onclick: (event) => this.#onPoint(event),
      onfocus: () => this.#chosen < 0 && this.#element.matches(":focus-visible") && this.choose(0),
      onblur: () => this.choose(-1),
      onkeydown: (event) => this.#onKey(event),
    });
    this.update();
  }

  get element() {
    return this.#element;
  }

  /** Show the tokens that came since. */
  update() {
    const { tokens } = this.#trace;
    while (this.#numShown < tokens.length) {
      const stretch = this.#openStretch();
      const end = Math.min(tokens.length, stretch.first + PER_STRETCH);
      stretch.tokens = tokens.slice(stretch.first, end);
      if (stretch.isNear) {
        for (let i = this.#numShown; i < end; i += 1) stretch.element.append(tokenSpan(tokens[i], i));
      } else drawPlain(stretch);
      this.#numShown = end;
    }
  }

  /** Look at a token; -1 = at none. */
  choose(index) {
    if (index === this.#chosen) return;
    this.#spanOf(this.#chosen)?.classList.remove("chosen");
    this.#chosen = index;
    this.#onChoose(index);
    if (index < 0) {
      hideCard();
      return;
    }
    const stretch = this.#stretches[Math.floor(index / PER_STRETCH)];
    if (!stretch.isNear) drawSpans(stretch);
    const span = this.#spanOf(index);
    span.classList.add("chosen");
    const token = this.#trace.tokens[index];
    showCard(span, token, this.#trace.passes[token.pass], index);
  }

  #openStretch() {
    const last = this.#stretches.at(-1);
    if (last && last.tokens.length < PER_STRETCH) return last;
    const element = h("span", { class: "stretch" });
    const stretch = { element, first: this.#numShown, tokens: [], isNear: false };
    element.stretch = stretch;
    this.#stretches.push(stretch);
    this.#element.append(element);
    this.#seen.observe(element);
    return stretch;
  }

  #spanOf(index) {
    if (index < 0) return null;
    const { element, first, isNear } = this.#stretches[Math.floor(index / PER_STRETCH)];
    return isNear ? element.children[index - first] : null;
  }

  #onPoint(event) {
    if (this.#isByKeys && event.type === "pointerover") return;
    const span = event.target.closest(".token");
    if (span) this.choose(Number(span.dataset.index));
  }

  #onKey(event) {
    const last = this.#trace.tokens.length - 1;
    const to = { ArrowRight: this.#chosen + 1, ArrowLeft: this.#chosen - 1, Home: 0, End: last }[event.key];
    if (to !== undefined) {
      event.preventDefault();
      this.#isByKeys = true;
      this.choose(Math.max(0, Math.min(last, to)));
      this.#spanOf(this.#chosen)?.scrollIntoView({ block: "nearest" });
    } else if (event.key === "Escape" && this.#chosen >= 0) {
      event.preventDefault();
      this.choose(-1);
    }
  }
}

function drawByDistance({ target, isIntersecting }) {
  const { stretch } = target;
  if (isIntersecting && !stretch.isNear) drawSpans(stretch);
  else if (!isIntersecting && stretch.isNear && !target.querySelector(".chosen")) drawPlain(stretch);
}

function drawSpans(stretch) {
  stretch.isNear = true;
  stretch.element.replaceChildren(
    ...stretch.tokens.map((token, i) => tokenSpan(token, stretch.first + i)),
  );
}

function drawPlain(stretch) {
  stretch.isNear = false;
  stretch.element.replaceChildren(stretch.tokens.map(shownText).join(""));
}

function tokenSpan(token, index) {
  const span = h("span", { class: `token by-${shadeOf(token)}`, data: { index } }, shownText(token));
  if (token.origin === "draft" && token.survival !== null) {
    span.style.setProperty("--survival", token.survival);
  }
  return span;
}
