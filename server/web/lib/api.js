// Calls to the server that sent this page. What it refuses is told in its own words.

import { askForKey, currentKey } from "./key.js";
import { readEvents } from "./sse.js";

/** What the server, or the way to it, refused. */
export class ApiError extends Error {
  /**
   * @param {string} message
   * @param {{status?: number, code?: string|null, param?: string|null, retryAfterS?: number|null}} told
   */
  constructor(message, { status = 0, code = null, param = null, retryAfterS = null } = {}) {
    super(message);
    this.name = "ApiError";
    Object.assign(this, { status, code, param, retryAfterS });
  }
}

/**
 * Call the server; asks for a key where it wants one, and tries again with it.
 *
 * @param {string} path without a slash at its beginning.
 * @param {{body?: object, signal?: AbortSignal}} given a body makes it a POST.
 * @throws {ApiError}
 */
export async function call(path, { body, signal } = {}) {
  for (;;) {
    const key = currentKey();
    const response = await send(path, key, body, signal);
    if (response.ok) return response;
    const error = await errorOf(response);
    if (response.status !== 401) throw error;
    // Somebody may have given another key since this call was sent.
    if (key === currentKey() && !(await askForKey(error.message))) throw error;
  }
}

/**
 * Give what a stream of chunks says, until it has said that it is done.
 *
 * @param {string} path
 * @param {object} body
 * @param {AbortSignal} signal
 * @throws {ApiError} also in the middle: what the server says there, or that it says no more.
 */
export async function* stream(path, body, signal) {
  const response = await call(path, { body, signal });
  let isDone = false;
  try {
    for await (const { data } of readEvents(response)) {
      // Read to its end, the connection can be used again.
      isDone ||= data === "[DONE]";
      if (isDone) continue;
      const chunk = JSON.parse(data);
      if (chunk.error) throw told(chunk.error, response);
      yield chunk;
    }
  } catch (error) {
    if (error instanceof ApiError || signal.aborted) throw error;
    throw lost();
  }
  if (!isDone) throw lost();
}

function lost() {
  return new ApiError("The connection ended before the answer did.", { code: "network" });
}

async function send(path, key, body, signal) {
  const headers = {};
  if (key) headers.authorization = `Bearer ${key}`;
  if (body) headers["content-type"] = "application/json";
  try {
    return await fetch(new URL(path, document.baseURI), {
      method: body ? "POST" : "GET",
      headers,
      body: body && JSON.stringify(body),
      signal,
      credentials: "omit",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError("The server cannot be reached. Is it running, and is the network there?", {
      code: "network",
    });
  }
}

async function errorOf(response) {
  const text = await response.text().catch(() => "");
  try {
    const { error } = JSON.parse(text);
    if (error?.message) return told(error, response);
  } catch {
    // Not the server's own words: a proxy's page, or nothing.
  }
  return told({ message: `The server answered ${response.status} ${response.statusText}.` }, response);
}

function told(error, response) {
  const milliseconds = Number(response.headers.get("retry-after-ms"));
  const seconds = milliseconds ? milliseconds / 1000 : Number(response.headers.get("retry-after"));
  return new ApiError(error.message, {
    status: response.status,
    code: error.code ?? null,
    param: error.param ?? null,
    retryAfterS: seconds || null,
  });
}
