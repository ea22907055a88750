import { h } from "../lib/dom.js";

export function mountRace(element) {
  element.append(h("p", { class: "empty-view" }, "Soon."));
}
