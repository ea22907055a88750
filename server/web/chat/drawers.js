// The two panels beside the thread. Where there is room the left one stands open; where there is not,
// either lies over the thread until it is closed.

import { h } from "../lib/dom.js";

const NARROW = matchMedia("(max-width: 900px)");

/** Opens and closes the panels. */
export class Drawers {
  #left;
  #right;

  /**
   * @param {HTMLElement} left
   * @param {HTMLElement} right
   */
  constructor(left, right) {
    this.#left = left;
    this.#right = right;
    this.veil = h("div", { class: "veil", hidden: true, onclick: () => this.close() });
    left.hidden = NARROW.matches;
    right.hidden = true;
    NARROW.addEventListener("change", () => {
      this.close();
      left.hidden = NARROW.matches;
    });
  }

  toggleLeft() {
    this.#set(this.#left, this.#left.hidden);
  }

  toggleRight() {
    this.#set(this.#right, this.#right.hidden);
  }

  /** Close what lies over the thread, or the right panel; false = nothing was open. */
  close() {
    const isLeftOver = NARROW.matches && !this.#left.hidden;
    const isRightOpen = !this.#right.hidden;
    if (isLeftOver) this.#set(this.#left, false);
    if (isRightOpen) this.#set(this.#right, false);
    return isLeftOver || isRightOpen;
  }

  /** Close the left panel where it lies over the thread. */
  closeLeftIfOver() {
    if (NARROW.matches) this.#set(this.#left, false);
  }

  #set(panel, isOpen) {
    panel.hidden = !isOpen;
    if (NARROW.matches && isOpen) {
      const other = panel === this.#left ? this.#right : this.#left;
      other.hidden = true;
      panel.querySelector("button, textarea")?.focus();
    }
    this.veil.hidden = !NARROW.matches || (this.#left.hidden && this.#right.hidden);
  }
}
