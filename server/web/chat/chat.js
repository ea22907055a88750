import { h } from "../lib/dom.js";

export function mountChat(element) {
  element.append(h("p", { class: "empty-view" }, "Soon."));
}
