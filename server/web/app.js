// Puts the page together: the bar, the keys and the views, each of which is loaded when it is shown.

import { h } from "./lib/dom.js";
import { icon } from "./lib/icons.js";
import { askForKey, currentKey, onKey } from "./lib/key.js";
import { startRouter } from "./lib/router.js";
import { forgetModel, showModel } from "./lib/server_state.js";
import { hearShortcuts, showShortcuts } from "./lib/shortcuts.js";
import { themeButton } from "./lib/theme.js";

const VIEWS = {
  chat: async (element) => (await import("./chat/chat.js")).mountChat(element),
  race: async (element) => (await import("./race/race.js")).mountRace(element),
  board: showBoard,
};

async function showBoard(element) {
  const board = await import("./board/board.js").catch(() => null);
  if (!board) {
    element.append(h("p", { class: "empty-view" }, "The board could not be loaded."));
    return;
  }
  let unmount = board.mountBoard(element, { apiKey: currentKey() });
  onKey((apiKey) => {
    unmount();
    unmount = board.mountBoard(element, { apiKey });
  });
}

function barButton(label, name, onclick) {
  return h(
    "button",
    { class: "bare icon-only", type: "button", "aria-label": label, title: label, onclick },
    icon(name),
  );
}

document
  .getElementById("bar-buttons")
  .append(
    barButton("API key", "key", () => askForKey()),
    themeButton(),
    barButton("Keyboard shortcuts (?)", "help", showShortcuts),
  );
hearShortcuts();
startRouter(document.getElementById("view"), VIEWS);
showModel(document.getElementById("model"));
onKey(() => {
  forgetModel();
  showModel(document.getElementById("model"));
});
