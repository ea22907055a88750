// Light or dark, by hand; `early_theme.js` has set what is known before the first paint.

import { h } from "./dom.js";
import { icon } from "./icons.js";

const NAME = "outdraft.theme";

/** Give the button that changes between light and dark. */
export function themeButton() {
  const root = document.documentElement;
  const button = h("button", { class: "bare icon-only", type: "button", onclick: toggle });
  const show = () => {
    const other = root.dataset.theme === "dark" ? "light" : "dark";
    button.setAttribute("aria-label", `Use ${other} colours`);
    button.title = button.getAttribute("aria-label");
    button.replaceChildren(icon(other === "dark" ? "moon" : "sun"));
  };
  function toggle() {
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
    try {
      localStorage.setItem(NAME, root.dataset.theme);
    } catch {
      // Without storage the choice lasts as long as the page.
    }
  }
  new MutationObserver(show).observe(root, { attributeFilter: ["data-theme"] });
  show();
  return button;
}
