// What stands inside a line, as elements. Markup that a model writes as HTML stays text, pictures
// become links (to load one would tell its host what was said here), and only plain addresses lead
// anywhere.

import { h } from "../lib/dom.js";

const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" };
const ENTITY = /&(?:#(\d{1,7})|#x([\da-f]{1,6})|(amp|lt|gt|quot|apos|nbsp));/gi;
const LEADS_SOMEWHERE = /^(https?:|mailto:)/i;
const WRAPPED = { strong: "strong", em: "em", del: "del" };

/** Make the nodes of a line's tokens. */
export function inlineNodes(tokens) {
  return tokens.map(inlineNode);
}

function inlineNode(token) {
  const tag = WRAPPED[token.type];
  if (tag) return h(tag, {}, inlineNodes(token.tokens));
  switch (token.type) {
    case "codespan":
      return h("code", {}, token.text);
    case "br":
      return h("br");
    case "link":
      return link(token.href, inlineNodes(token.tokens), token.title);
    case "image":
      return link(token.href, [`Picture: ${decoded(token.text) || token.href}`], token.title);
    case "checkbox":
      return h("span", { class: "box", role: "img", "aria-label": token.checked ? "done" : "open" },
        token.checked ? "☑ " : "☐ ");
    case "escape":
    case "html":
      return token.text;
    default:
      return token.tokens ? h("span", {}, inlineNodes(token.tokens)) : decoded(token.text ?? token.raw);
  }
}

function link(href, children, title) {
  if (!LEADS_SOMEWHERE.test(href)) return h("span", {}, children);
  const rel = "noopener noreferrer nofollow";
  return h("a", { href, target: "_blank", rel, title: title ?? href }, children);
}

function decoded(text) {
  return text.replace(ENTITY, (whole, decimal, hexadecimal, name) => {
    if (name) return ENTITIES[name.toLowerCase()];
    const point = decimal ? Number(decimal) : Number.parseInt(hexadecimal, 16);
    return point > 0 && point <= 0x10ffff ? String.fromCodePoint(point) : whole;
  });
}
