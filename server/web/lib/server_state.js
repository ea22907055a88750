// Which model is served, and whether it is there yet.

import { ApiError, call } from "./api.js";

const AGAIN_MS = 1500;
let model = null;

/** Give the served model; asked for once. */
export function servedModel() {
  model ??= ask();
  model.catch(forgetModel);
  return model;
}

/** Ask anew the next time: another model may be served now. */
export function forgetModel() {
  model = null;
}

async function ask() {
  const answer = await call("v1/models");
  const [card] = (await answer.json()).data;
  return {
    name: card.id,
    maxTokens: card.max_model_len ?? null,
    // For benchmarks: the words are not the model's, and their chances cannot be told.
    isSynthetic: answer.headers.has("x-outdraft-synthetic-acceptance"),
  };
}

/**
 * Show the model's name, and as long as it cannot be asked, why.
 *
 * @param {HTMLElement} place
 */
export async function showModel(place) {
  for (;;) {
    const status = await readiness();
    if (status === "ok") break;
    place.textContent = status;
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
  try {
    const { name, maxTokens } = await servedModel();
    place.textContent = maxTokens ? `${name} · ${maxTokens.toLocaleString("en")} tokens` : name;
    place.title = place.textContent;
  } catch (error) {
    place.textContent = error instanceof ApiError ? error.message : String(error);
  }
}

async function readiness() {
  try {
    const response = await fetch(new URL("ready", document.baseURI), { credentials: "omit" });
    const { status } = await response.json();
    return status === "ok" ? "ok" : `The model is not ready: ${status}`;
  } catch {
    return "The server cannot be reached";
  }
}
