// The chat: which conversation is open, what is asked, and which answers are on their way.

import { announce, h } from "../lib/dom.js";
import { icon } from "../lib/icons.js";
import { askForText, openDialog } from "../lib/dialogs.js";
import { onShortcut } from "../lib/shortcuts.js";
import { AnswerRun } from "./answer_run.js";
import { Composer } from "./composer.js";
import * as conversations from "./conversations.js";
import { Drawers } from "./drawers.js";
import { keepSettings, loadSettings } from "./settings.js";
import { SettingsPanel } from "./settings_panel.js";
import { Sidebar } from "./sidebar.js";
import { Thread } from "./thread.js";

// What came of an answer outlives the page, but for the last moments.
const KEEP_MS = 2000;

/** Show the chat in an element. */
export async function mountChat(element) {
  const chat = new Chat(element);
  await chat.start();
}

class Chat {
  #settings = loadSettings();
  #all = [];
  #open = conversations.newConversation();
  /** Answers on their way, by conversation. */
  #runs = new Map();

  constructor(element) {
    this.composer = new Composer({
      onSend: (text) => this.#send(text),
      onStop: () => this.#stop(),
      onEditLast: () => this.thread.editLast(),
    });
    this.sidebar = new Sidebar({
      onNew: () => this.#new(),
      onOpen: (one) => this.#show(one),
      onRename: (one) => this.#rename(one),
      onDelete: (one) => this.#delete(one),
    });
    this.thread = new Thread({
      onAgain: (message) => this.#answerAgain(message),
      onEdit: (message, text) => this.#edit(message, text),
      onIdea: (text) => this.#send(text),
    });
    this.panel = new SettingsPanel(this.#settings, {
      onChange: () => keepSettings(this.#settings),
      onSystem: (text) => this.#setSystem(text),
      onClose: () => this.drawers.close(),
    });
    this.drawers = new Drawers(this.sidebar.element, this.panel.element);
    const column = h("section", { class: "column", "aria-label": "Chat" }, this.#tools(), this.thread.element, this.composer.element);
    element.append(this.sidebar.element, column, this.panel.element, this.drawers.veil);
    this.#hearKeys(element);
  }

  /** Show what was kept, the latest first. */
  async start() {
    this.#show(this.#open);
    const found = await conversations.allConversations();
    found.forEach(conversations.noteInterruption);
    // Something may have been asked while the database was opened.
    const isNew = (one) => !this.#all.some(({ id }) => id === one.id);
    this.#all = [...this.#all, ...found.filter(isNew)];
    if (this.#all.length && !this.#open.messages.length) this.#show(this.#all[0]);
    this.composer.input.focus({ preventScroll: true });
  }

  #tools() {
    const button = (label, name, onclick) =>
      h("button", { class: "bare small", type: "button", title: label, "aria-label": label, onclick }, icon(name));
    this.viewButton = h("button", { class: "bare small", type: "button", title: "Text or tokens, for all answers (Alt+T)", "aria-pressed": "false", onclick: () => this.#switchView() }, icon("tokens"), "Tokens");
    this.viewButton.setAttribute("aria-pressed", String(this.#settings.view === "tokens"));
    return h(
      "div",
      { class: "tools" },
      button("Conversations", "menu", () => this.drawers.toggleLeft()),
      h("span", { class: "tools-gap" }),
      this.viewButton,
      h("button", { class: "bare small", type: "button", title: "Settings", onclick: () => this.drawers.toggleRight() }, icon("sliders"), "Settings"),
    );
  }

  #hearKeys(element) {
    const here = (action) => (event) => (element.hidden ? false : action(event));
    onShortcut("Escape", here(() => this.#stop() || this.drawers.close()));
    onShortcut("/", here(() => this.composer.input.focus()));
    onShortcut("Alt+N", here(() => this.#new()));
    onShortcut("Alt+T", here(() => this.#switchView()));
    onShortcut("Alt+R", here(() => {
      const last = this.#open.messages.at(-1);
      return last?.role === "assistant" ? void this.#answerAgain(last) : false;
    }));
  }

  #show(conversation) {
    this.#open = conversation;
    const run = this.#runs.get(conversation);
    this.thread.show(conversation, run, this.#settings.view);
    this.composer.setBusy(Boolean(run));
    this.panel.system.value = conversation.system;
    this.#showSidebar();
    this.drawers.closeLeftIfOver();
  }

  #showSidebar() {
    this.sidebar.show(this.#all, this.#open);
  }

  #new() {
    this.#show(conversations.newConversation());
    this.composer.input.focus();
  }

  #send(text) {
    if (this.#runs.has(this.#open)) return;
    this.#add(conversations.newMessage("user", text));
    this.#answer();
  }

  #add(message, run) {
    this.#open.messages.push(message);
    this.thread.add(message, run, this.#settings.view);
    this.thread.toEnd();
  }

  async #answer() {
    const conversation = this.#open;
    const message = conversations.newMessage("assistant");
    const run = new AnswerRun(message);
    this.#runs.set(conversation, run);
    this.#add(message, run);
    this.composer.setBusy(true);
    await this.#keep(conversation);
    const keeping = setInterval(() => conversations.keep(conversation), KEEP_MS);
    await run.run(conversations.messagesBefore(conversation, message), this.#settings);
    clearInterval(keeping);
    // Meanwhile the question may have been changed, or the conversation deleted.
    if (this.#runs.get(conversation) !== run) return;
    this.#runs.delete(conversation);
    message.hasTrace = !run.trace.isEmpty;
    if (message.hasTrace) await conversations.keepTrace(message, run.trace.passes);
    await this.#keep(conversation);
    if (this.#open !== conversation) return;
    this.composer.setBusy(false);
    announce(message.error ? message.error.text : "The answer is complete.");
  }

  /** Keep a conversation, and bring it to the top of the list. */
  async #keep(conversation) {
    conversation.updated = Date.now();
    this.#all = [conversation, ...this.#all.filter((one) => one !== conversation)];
    this.#showSidebar();
    await conversations.keep(conversation);
  }

  /** Give the answer that is coming up; false = none is. */
  #stop() {
    const run = this.#runs.get(this.#open);
    run?.stop();
    return Boolean(run);
  }

  #answerAgain(message) {
    this.#cutFrom(message);
    this.#answer();
  }

  #edit(message, text) {
    this.#cutFrom(message);
    this.#send(text);
  }

  /** Take a message and all after it away. */
  #cutFrom(message) {
    this.#stop();
    this.#runs.delete(this.#open);
    const { messages } = this.#open;
    conversations.forgetTraces(messages.splice(messages.indexOf(message)));
    this.#show(this.#open);
  }

  async #rename(conversation) {
    const title = await askForText("Rename", "Title", conversations.titleOf(conversation));
    if (title === null) return;
    conversation.title = title;
    this.#showSidebar();
    await conversations.keep(conversation);
  }

  async #delete(conversation) {
    const body = [h("p", {}, `“${conversations.titleOf(conversation)}” cannot be brought back.`)];
    if (!(await openDialog({ title: "Delete this conversation?", body, accept: "Delete" }))) return;
    this.#runs.get(conversation)?.stop();
    this.#runs.delete(conversation);
    this.#all = this.#all.filter((one) => one !== conversation);
    await conversations.forget(conversation);
    if (this.#open === conversation) this.#show(this.#all[0] ?? conversations.newConversation());
    else this.#showSidebar();
  }

  #setSystem(text) {
    this.#open.system = text;
    if (this.#all.includes(this.#open)) conversations.keep(this.#open);
  }

  #switchView() {
    this.#settings.view = this.#settings.view === "tokens" ? "text" : "tokens";
    keepSettings(this.#settings);
    this.viewButton.setAttribute("aria-pressed", String(this.#settings.view === "tokens"));
    this.thread.showAs(this.#settings.view);
  }
}
