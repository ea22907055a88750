// Conversations as data: what was said, in order. A message that answers has a trace of its own.

import { erase, read, readAll, write } from "./database.js";

const MAX_TITLE = 48;

/** Make an empty conversation. */
export function newConversation() {
  return { id: randomId(), title: "", system: "", updated: Date.now(), messages: [] };
}

/** Make a message; an answer is filled as it comes. */
export function newMessage(role, content = "") {
  return { id: randomId(), role, content };
}

/** Give all conversations, the latest first. */
export async function allConversations() {
  const found = await readAll("conversations");
  return found.sort((a, b) => b.updated - a.updated);
}

/** Say of answers that were on their way when the page was left that they were interrupted. */
export function noteInterruption({ messages }) {
  for (const message of messages) {
    if (message.role === "assistant" && message.ms === undefined) message.finish = "interrupted";
  }
}

/** Keep a conversation as it is now. */
export function keep(conversation) {
  return write("conversations", conversation);
}

/** Forget a conversation, and where its tokens came from. */
export async function forget(conversation) {
  await forgetTraces(conversation.messages);
  await erase("conversations", conversation.id);
}

/** Keep the passes of an answer. */
export function keepTrace(message, passes) {
  return write("traces", { id: message.id, passes });
}

/** Give the passes of an answer. */
export async function traceOf(message) {
  return (await read("traces", message.id))?.passes ?? [];
}

/** Forget the passes of answers that are no more. */
export function forgetTraces(messages) {
  const answers = messages.filter((message) => message.role === "assistant");
  return Promise.all(answers.map((message) => erase("traces", message.id)));
}

/** Give what a conversation is called. */
export function titleOf(conversation) {
  if (conversation.title) return conversation.title;
  const said = conversation.messages[0]?.content.trim().split("\n")[0] ?? "";
  if (!said) return "New conversation";
  return said.length > MAX_TITLE ? `${said.slice(0, MAX_TITLE).trimEnd()}…` : said;
}

/** Give what a request says of a conversation up to a message, that one left out. */
export function messagesBefore(conversation, message) {
  const end = conversation.messages.indexOf(message);
  const said = conversation.messages.slice(0, end).filter((one) => one.content);
  const system = conversation.system.trim();
  return [
    ...(system ? [{ role: "system", content: system }] : []),
    ...said.map(({ role, content }) => ({ role, content })),
  ];
}

function randomId() {
  return [...crypto.getRandomValues(new Uint8Array(16))]
    .map((byte) => byte.toString(16).padStart(2, "0"))
    .join("");
}
