// Passes side by side: what each proposed, what was accepted and rejected, and the target's own token
// on top. Only those that can be seen are elements.

import { h, oncePerFrame } from "../lib/dom.js";
import { drafterName, milliseconds, shadeOf } from "./trace.js";

const WIDTH = 14;
const SPARE = 20;

/** Shows a trace's passes. */
export class PassStrip {
  #trace;
  #track = h("div", { class: "strip-track" });
  #told = h("p", { class: "strip-told", "aria-live": "off" });
  #scroller;
  #drawn = new Map();
  #chosen = -1;
  #draw = oncePerFrame(() => this.#drawVisible());

  /** @param {import("./trace.js").Trace} trace */
  constructor(trace) {
    this.#trace = trace;
    this.#scroller = h(
      "div",
      {
        class: "strip",
        tabindex: "0",
        role: "group",
        "aria-label": "Passes of the answer. The arrow keys go from one to the next.",
        onscroll: this.#draw,
        onkeydown: (event) => this.#onKey(event),
        onpointerover: (event) => this.#onPoint(event),
        onpointerleave: () => this.choose(-1),
        onclick: (event) => this.#onPoint(event),
      },
      this.#track,
    );
    this.element = h("div", { class: "passes" }, this.#scroller, this.#told);
    new ResizeObserver(this.#draw).observe(this.#scroller);
    this.update();
  }

  /** Show the passes that came since. */
  update() {
    this.#track.style.setProperty("width", `${this.#trace.passes.length * WIDTH}px`);
    if (this.#chosen < 0) this.#told.replaceChildren(summary(this.#trace));
    this.#draw();
  }

  /** Look at a pass; -1 = at none. */
  choose(index) {
    this.#drawn.get(this.#chosen)?.classList.remove("chosen");
    this.#chosen = index;
    this.#drawn.get(index)?.classList.add("chosen");
    const pass = this.#trace.passes[index];
    this.#told.replaceChildren(...(pass ? tell(pass, index) : [summary(this.#trace)]));
  }

  #drawVisible() {
    const { scrollLeft, clientWidth } = this.#scroller;
    const first = Math.max(0, Math.floor(scrollLeft / WIDTH) - SPARE);
    const end = Math.min(this.#trace.passes.length, Math.ceil((scrollLeft + clientWidth) / WIDTH) + SPARE);
    for (const [index, element] of this.#drawn) {
      if (index >= first && index < end) continue;
      element.remove();
      this.#drawn.delete(index);
    }
    for (let index = first; index < end; index += 1) {
      if (this.#drawn.has(index)) continue;
      const element = column(this.#trace.passes[index], index);
      if (index === this.#chosen) element.classList.add("chosen");
      this.#drawn.set(index, element);
      this.#track.append(element);
    }
  }

  #onPoint(event) {
    const found = event.target.closest(".pass");
    if (found) this.choose(Number(found.dataset.index));
  }

  #onKey(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const index = Math.max(0, Math.min(this.#trace.passes.length - 1, this.#chosen + step));
    this.#scroller.scrollTo({ left: index * WIDTH - this.#scroller.clientWidth / 2 });
    this.#drawVisible();
    this.choose(index);
  }
}

function column(pass, index) {
  const cells = [];
  pass.tokens.forEach((token, place) => {
    const isDraft = place < pass.accepted;
    cells.push(h("i", { class: `cell by-${isDraft ? shadeOf({ ...token, origin: "draft", drafter: token.drafter ?? pass.drafter }) : shadeOf(token)}` }));
  });
  for (let i = pass.accepted; i < pass.proposed; i += 1) cells.push(h("i", { class: "cell rejected" }));
  const element = h("span", { class: "pass", data: { index } }, cells);
  element.style.setProperty("left", `${index * WIDTH}px`);
  return element;
}

function summary(trace) {
  const { passes, tokens, proposed, accepted } = trace.totals();
  if (!passes) return "";
  const each = (tokens / passes).toFixed(2);
  const drafts = proposed
    ? `${accepted} of ${proposed} drafts accepted (${Math.round((100 * accepted) / proposed)} %)`
    : "nothing was drafted";
  return `${tokens} tokens in ${passes} passes of the target: ${each} a pass; ${drafts}.`;
}

function tell(pass, index) {
  const by = pass.drafter ? ` by ${drafterName(pass.drafter)}` : "";
  const counts = pass.proposed
    ? `${pass.proposed} proposed${by}, ${pass.accepted} accepted, ${pass.proposed - pass.accepted} rejected`
    : "nothing proposed";
  const parts = [h("span", { class: "numbers" }, `Pass ${index + 1}, ${milliseconds(pass.ms)}: ${counts}. `)];
  pass.draft?.forEach((draft, place) => {
    const isKept = place < pass.accepted;
    parts.push(h(isKept ? "ins" : "del", { class: isKept ? `by-${shadeOf({ origin: "draft", drafter: pass.drafter })}` : "rejected" }, draft.text || "▯"), " ");
  });
  const own = pass.tokens.slice(pass.accepted);
  own.forEach((token) => parts.push(h("span", { class: `token by-${shadeOf(token)}` }, token.text || (token.cut ? "⊣" : "▯")), " "));
  return parts;
}
