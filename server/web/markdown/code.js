// Code of an answer: with a name, a button that copies it, and colours where its language is known.

import { h } from "../lib/dom.js";
import { copyButton } from "../lib/copy.js";
import { coloured, languageOf } from "./highlight.js";

/**
 * Make a block of code.
 *
 * @param {{text: string, lang?: string}} token
 * @param {boolean} isWhole whether it will not grow; what grows has no colours yet.
 */
export function codeBlock({ text, lang = "" }, isWhole) {
  const name = lang.trim().split(/\s/)[0].slice(0, 30);
  const code = h("code", {}, text);
  const language = languageOf(name);
  if (isWhole && language) {
    coloured(text, language).then((nodes) => nodes && code.replaceChildren(...nodes));
  }
  return h(
    "div",
    { class: "code" },
    h("div", { class: "code-head" }, h("span", {}, name || "text"), copyButton("Copy code", () => text)),
    h("pre", { tabindex: "0", "aria-label": `Code, ${name || "text"}` , role: "region" }, code),
  );
}
