// How the connection and the server are, in words.

import { h } from "../lib/dom.js";
import { setText } from "./drawing.js";
import { clock } from "./units.js";

const SERVER = {
  loading: "The model is loading.",
  restarting: "The engine is starting anew.",
  draining: "The server is finishing its last requests.",
  dead: "The engine has stopped.",
};

export class StatusLine {
  #state = { name: "connecting" };
  #sample = null;
  #ticking = null;
  #dot = h("span", { class: "board-dot", "aria-hidden": "true" });
  // The only live region of the board: numbers that change each second would never stop talking.
  #words = h("span", { role: "status" });
  #countdown = h("span", { class: "board-note", "aria-hidden": "true" });
  #activity = h("span", { class: "board-note" });
  #retry = h("button", { type: "button", hidden: true }, "Try now");

  /** @param {() => void} onRetry called when one will not wait */
  constructor(onRetry) {
    this.#retry.addEventListener("click", onRetry);
    this.element = h(
      "p",
      { class: "board-status", "data-state": "connecting" },
      this.#dot,
      this.#words,
      this.#countdown,
      this.#activity,
      this.#retry,
    );
    this.#write();
  }

  /** @param {import("./stream.js").State} state */
  showState(state) {
    this.#state = state;
    this.element.dataset.state = state.name;
    this.#retry.hidden = state.name !== "lost";
    clearInterval(this.#ticking);
    if (state.name === "lost") this.#ticking = setInterval(() => this.#count(), 1000);
    this.#write();
  }

  showSample(sample) {
    this.#sample = sample;
    this.#write();
  }

  stop() {
    clearInterval(this.#ticking);
  }

  #write() {
    setText(this.#words, WORDS[this.#state.name](this.#state));
    setText(this.#activity, this.#state.name === "live" ? activityOf(this.#sample) : "");
    this.#count();
  }

  #count() {
    const { name, retryAt } = this.#state;
    const seconds = Math.max(Math.ceil((retryAt - Date.now()) / 1000), 0);
    setText(this.#countdown, name === "lost" && seconds ? `Next try in ${seconds} s.` : "");
  }
}

const WORDS = {
  connecting: () => "Connecting…",
  live: () => "Live",
  lost: ({ since, why }) => `No connection since ${clock(since / 1000)}: ${why.replace(/\.$/, "")}.`,
  forbidden: () => "No access.",
  resting: () => "Resting while nobody looks.",
};

function activityOf(sample) {
  if (!sample) return "";
  if (SERVER[sample.status]) return SERVER[sample.status];
  const isIdle = sample.requests_running + sample.requests_waiting === 0;
  return isIdle ? "Nothing is running." : "";
}
