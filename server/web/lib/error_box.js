// What went wrong, in the server's words, and when it can be tried again.

import { ApiError } from "./api.js";
import { h } from "./dom.js";
import { icon } from "./icons.js";

const TICK_MS = 500;

/** Give what can be kept and shown of an error. */
export function toldError(error) {
  const isKnown = error instanceof ApiError;
  return {
    text: isKnown ? error.message : `The page failed: ${error.message}`,
    status: isKnown ? error.status : 0,
    retryAt: isKnown && error.retryAfterS ? Date.now() + error.retryAfterS * 1000 : null,
  };
}

/**
 * Make the box of an error.
 *
 * @param {{text: string, status: number, retryAt: number|null}} error
 * @param {() => void} onAgain
 */
export function errorBox(error, onAgain) {
  const when = h("span", { class: "retry-when numbers" });
  const again = h("button", { class: "small", type: "button", onclick: onAgain }, icon("again"), "Try again");
  const box = h(
    "div",
    { class: "error-box", role: "alert" },
    h("p", {}, error.status ? h("strong", { class: "numbers" }, `${error.status} `) : null, error.text),
    h("p", {}, again, when),
  );
  const count = () => {
    const seconds = Math.ceil(((error.retryAt ?? 0) - Date.now()) / 1000);
    when.textContent = seconds > 0 ? ` The server says: in ${seconds} s.` : "";
    again.disabled = seconds > 0;
    return seconds > 0;
  };
  if (count()) {
    const timer = setInterval(() => {
      if (!count() || !box.isConnected) clearInterval(timer);
    }, TICK_MS);
  }
  return box;
}
