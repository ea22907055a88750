// Blocks of Markdown as elements; the library only reads it.

import { Lexer } from "../vendor/marked/marked.js";
import { h } from "../lib/dom.js";
import { codeBlock } from "./code.js";
import { inlineNodes } from "./inline.js";

// Reading a line takes time with the square of its length, at worst.
const MAX_INLINE = 10_000;
const MAX_NESTING = 40;

/**
 * Read Markdown.
 *
 * @param {string} text whose lines end with `\n`.
 * @returns {Array<object>} blocks, each with the `raw` text it was read from.
 */
export function readBlocks(text) {
  const lexer = new Lexer({ gfm: true });
  try {
    const tokens = lexer.blockTokens(text, []);
    for (const { src, tokens: inside } of lexer.inlineQueue) {
      if (src.length > MAX_INLINE) inside.push({ type: "text", raw: src, text: src });
      else lexer.inlineTokens(src, inside);
    }
    return tokens;
  } catch {
    // Nested too deep to be read.
    return [{ type: "plain", raw: text, text }];
  }
}

/** Make the elements of blocks; those that may still grow are `isWhole` false. */
export function blockNodes(tokens, isWhole = true, depth = 0) {
  return tokens.map((token) => blockNode(token, isWhole, depth)).filter(Boolean);
}

function blockNode(token, isWhole, depth) {
  if (depth > MAX_NESTING) return h("p", { class: "plain" }, token.raw);
  switch (token.type) {
    case "space":
    case "def":
      return null;
    case "code":
      return codeBlock(token, isWhole);
    case "heading":
      // The page has headings of its own above those of an answer.
      return h(`h${Math.min(token.depth + 2, 6)}`, {}, inlineNodes(token.tokens));
    case "hr":
      return h("hr");
    case "blockquote":
      return h("blockquote", {}, blockNodes(token.tokens, isWhole, depth + 1));
    case "list":
      return list(token, isWhole, depth);
    case "table":
      return table(token);
    case "paragraph":
      return h("p", {}, inlineNodes(token.tokens));
    case "text":
      return h("span", {}, token.tokens ? inlineNodes(token.tokens) : token.text);
    default:
      return h("p", { class: "plain" }, token.text ?? token.raw);
  }
}

function list(token, isWhole, depth) {
  const items = token.items.map((item) => h("li", { class: item.task && "task" },
    blockNodes(item.tokens.map(asBlock), isWhole, depth + 1)));
  if (!token.ordered) return h("ul", {}, items);
  return h("ol", { start: token.start === 1 ? null : token.start }, items);
}

/** A box may stand in an item beside its text. */
function asBlock(token) {
  return token.type === "checkbox" ? { type: "text", raw: token.raw, tokens: [token] } : token;
}

function table({ header, rows }) {
  const cell = (tag) => (given) =>
    h(tag, { class: given.align && `to-${given.align}` }, inlineNodes(given.tokens));
  return h(
    "div",
    { class: "table", role: "region", "aria-label": "Table", tabindex: "0" },
    h(
      "table",
      {},
      h("thead", {}, h("tr", {}, header.map(cell("th")))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map(cell("td"))))),
    ),
  );
}
