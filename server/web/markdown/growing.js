// Markdown that grows: blocks that nothing can change any more are made once, so an answer costs in
// proportion to its length. Only its end is made anew, and not more often than it takes time.

import { blockNodes, readBlocks } from "./blocks.js";

// A block's neighbour can still become part of it: a line below a paragraph, an item of a list.
const NUM_OPEN = 2;
const MAX_SHARE = 0.25;

/** Shows a text that grows. */
export class GrowingMarkdown {
  #element;
  #numSettled = 0;
  #numRead = 0;
  #text = "";
  #timer = null;
  #restMs = 0;
  #lastMs = 0;

  /** @param {HTMLElement} element which holds nothing else. */
  constructor(element) {
    this.#element = element;
  }

  /** Show a text, which begins as the one before; soon. */
  update(text) {
    this.#text = text;
    if (this.#timer !== null) return;
    const wait = Math.max(0, this.#lastMs + this.#restMs - performance.now());
    this.#timer = setTimeout(() => requestAnimationFrame(() => this.#show()), wait);
  }

  /** Show a text that is whole, at once. */
  finish(text) {
    clearTimeout(this.#timer);
    this.#timer = -1;
    this.#element.replaceChildren(...blockNodes(readBlocks(withPlainEnds(text))));
  }

  #show() {
    if (this.#timer === -1) return;
    this.#timer = null;
    const start = performance.now();
    const text = withPlainEnds(this.#text);
    const tokens = readBlocks(text.slice(this.#numRead));
    const numOpen = tokens.slice(-NUM_OPEN - 1).length;
    const settled = tokens.slice(0, tokens.length - numOpen);
    while (this.#element.childNodes.length > this.#numSettled) this.#element.lastChild.remove();
    this.#element.append(...blockNodes(settled));
    this.#numSettled = this.#element.childNodes.length;
    this.#numRead += settled.reduce((sum, token) => sum + token.raw.length, 0);
    this.#element.append(...blockNodes(tokens.slice(tokens.length - numOpen), false));
    this.#lastMs = performance.now();
    this.#restMs = (this.#lastMs - start) / MAX_SHARE;
  }
}

function withPlainEnds(text) {
  return text.includes("\r") ? text.replace(/\r\n?/g, "\n") : text;
}
