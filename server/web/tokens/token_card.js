// What is known of one token, on a card beside it; there is one card on the page.

import { announce, h } from "../lib/dom.js";
import { drafterName, milliseconds, originOf, percent, shadeOf } from "./trace.js";

const GAP = 8;
let card = null;
let held = null;

/**
 * Show the card of a token.
 *
 * @param {HTMLElement} span where the token stands.
 * @param {object} token
 * @param {object} pass that it came from.
 * @param {number} index of the token in the answer.
 */
export function showCard(span, token, pass, index) {
  hideCard();
  held = span;
  card = h(
    "div",
    { class: "token-card", role: "tooltip" },
    h("p", { class: `card-title by-${shadeOf(token)}` }, originOf(token)),
    h("p", { class: "card-token" }, JSON.stringify(token.text), h("span", { class: "soft" }, ` id ${token.id}`)),
    h("dl", { class: "numbers" }, facts(token, pass, index).map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    alternatives(token),
  );
  document.body.append(card);
  place();
  announce(`${token.text || "no text"}: ${originOf(token)}`);
}

/** Take the card away. */
export function hideCard() {
  card?.remove();
  card = held = null;
}

function facts(token, pass, index) {
  const found = [];
  if (token.origin === "grammar" && token.drafter) found.push(["Also drafted by", drafterName(token.drafter)]);
  if (token.survival !== null) found.push(["Expected to be accepted", percent(token.survival)]);
  if (token.logprob !== null) {
    found.push(["Probability", percent(Math.exp(token.logprob))]);
    found.push(["Log probability", token.logprob.toFixed(3)]);
  }
  if (token.rank !== null) found.push(["Rank", String(token.rank)]);
  const share = pass.tokens.length > 1 ? ` for ${pass.tokens.length} tokens` : "";
  found.push(["Time of its pass", `${milliseconds(pass.ms)}${share}`]);
  found.push(["Place", `token ${index + 1}, pass ${token.pass + 1}`]);
  if (token.cut) found.push(["Left out", "the answer ended here"]);
  return found;
}

function alternatives(token) {
  if (!token.top.length) return null;
  const rows = token.top.map(({ id, text, logprob }) => {
    const share = Math.exp(logprob);
    const bar = h("span", { class: "bar-of" });
    bar.style.setProperty("--share", share);
    return h("li", { class: id === token.id && "is-it" }, h("code", {}, JSON.stringify(text)), bar, h("span", { class: "numbers" }, percent(share)));
  });
  return [h("p", { class: "card-sub" }, "Alternatives"), h("ol", { class: "alternatives" }, rows)];
}

function place() {
  if (!held?.isConnected) {
    hideCard();
    return;
  }
  const rect = held.getClientRects()[0] ?? held.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = card;
  const below = rect.bottom + GAP;
  const top = below + height <= innerHeight ? below : Math.max(GAP, rect.top - GAP - height);
  const left = Math.max(GAP, Math.min(rect.left, innerWidth - width - GAP));
  card.style.setProperty("top", `${top}px`);
  card.style.setProperty("left", `${left}px`);
}

addEventListener("scroll", place, { capture: true, passive: true });
