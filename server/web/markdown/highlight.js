// Colours for code. The library and each language are loaded when a block first needs them; its tree
// is turned into elements here, so no markup is parsed.

import { h } from "../lib/dom.js";

const MAX_LENGTH = 30_000;
const LANGUAGES = {
  bash: "bash", sh: "bash", shell: "bash", zsh: "bash", console: "bash",
  c: "c", h: "c", cpp: "cpp", "c++": "cpp", cc: "cpp", cuda: "cpp", hpp: "cpp",
  diff: "diff", patch: "diff", go: "go", golang: "go", java: "java",
  javascript: "javascript", js: "javascript", jsx: "javascript", mjs: "javascript",
  json: "json", jsonc: "json", markdown: "markdown", md: "markdown",
  python: "python", py: "python", rust: "rust", rs: "rust", sql: "sql",
  typescript: "typescript", ts: "typescript", tsx: "typescript",
  html: "xml", xml: "xml", svg: "xml", yaml: "yaml", yml: "yaml",
};
const loading = new Map();

/** Give the language that a block's name means; null = none that is known. */
export function languageOf(name) {
  const key = name.toLowerCase();
  return Object.hasOwn(LANGUAGES, key) ? LANGUAGES[key] : null;
}

/** Give a text's nodes with their colours; null = it stays as it is. */
export async function coloured(text, language) {
  if (text.length > MAX_LENGTH) return null;
  if (!loading.has(language)) loading.set(language, load(language));
  const library = await loading.get(language).catch(() => null);
  if (!library) return null;
  const { _emitter: emitter } = library.highlight(text, { language, ignoreIllegals: true });
  return nodes(emitter.rootNode);
}

async function load(language) {
  const [library, grammar] = await Promise.all([
    import("../vendor/highlight/core.js"),
    import(`../vendor/highlight/languages/${language}.js`),
  ]);
  library.default.registerLanguage(language, grammar.default);
  return library.default;
}

function nodes(node) {
  return node.children.map((child) => {
    if (typeof child === "string") return child;
    const scope = child.scope?.split(".")[0] ?? "";
    return h("span", { class: scope && `hl-${scope}` }, nodes(child));
  });
}
