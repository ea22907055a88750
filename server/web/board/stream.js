// The server's statistics as they come, for as long as somebody looks: reconnects when the
// connection is lost, rests when told to. Knows nothing of what the events hold.
//
// Read with fetch, since EventSource sends no Authorization header.

import { readEvents } from "../lib/sse.js";

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 15_000;
// Events come every second; where none has come for so long, the connection is as good as lost.
const SILENCE_MS = 15_000;

/**
 * @typedef {Object} State
 * @property {"connecting"|"live"|"lost"|"forbidden"|"resting"} name
 * @property {number} [since] when the connection was lost, milliseconds of the epoch
 * @property {number} [retryAt] when it is tried again, milliseconds of the epoch
 * @property {string} [why] what the server or the browser said
 */

export class StatisticsStream {
  #abort = null;
  #retry = null;
  #silence = null;
  #wait = 0;
  /** @type {State} */
  #state = { name: "resting" };

  /**
   * @param {string} address
   * @param {() => string} readKey gives the API key, empty where there is none
   * @param {(event: {event: string, data: string}) => void} onEvent
   * @param {(state: State) => void} onState
   */
  constructor(address, readKey, onEvent, onState) {
    this.address = address;
    this.readKey = readKey;
    this.onEvent = onEvent;
    this.onState = onState;
  }

  /** Connect now, in the place of any connection that there is. */
  async connect() {
    this.#leave();
    const abort = new AbortController();
    this.#abort = abort;
    if (this.#state.name !== "lost") this.#enter({ name: "connecting" });
    try {
      await this.#read(abort);
      if (this.#abort === abort) this.#lose("the server ended the stream");
    } catch (error) {
      if (this.#abort === abort) this.#lose(wordsOf(error));
    }
  }

  /** Connect where there is no connection, unless a key is needed first. */
  wake() {
    if (this.#abort === null && this.#state.name !== "forbidden") this.connect();
  }

  /** Connect no more until told to. */
  rest() {
    this.#leave();
    if (this.#state.name !== "forbidden") this.#enter({ name: "resting" });
  }

  async #read(abort) {
    const key = this.readKey();
    this.#expectEvent();
    const response = await fetch(this.address, {
      headers: key ? { Authorization: `Bearer ${key}` } : {},
      signal: abort.signal,
      cache: "no-store",
      credentials: "omit",
    });
    if (response.status === 401 || response.status === 403) {
      const why = await reasonOf(response);
      if (this.#abort === abort) this.#refused(why);
      return;
    }
    if (!response.ok) throw new Error(await reasonOf(response));
    for await (const event of readEvents(response)) {
      if (this.#abort !== abort) return;
      this.#expectEvent();
      if (this.#state.name !== "live") this.#enter({ name: "live" });
      this.#wait = 0;
      this.onEvent(event);
    }
  }

  #refused(why) {
    this.#leave();
    this.#enter({ name: "forbidden", why });
  }

  #lose(why) {
    this.#leave();
    const since = this.#state.name === "lost" ? this.#state.since : Date.now();
    this.#wait = Math.min(Math.max(this.#wait * 2, FIRST_WAIT_MS), LONGEST_WAIT_MS);
    // Many boards that lose one server should not come back in the same instant.
    const wait = this.#wait * (0.75 + Math.random() / 2);
    this.#retry = setTimeout(() => this.connect(), wait);
    this.#enter({ name: "lost", since, retryAt: Date.now() + wait, why });
  }

  #enter(state) {
    this.#state = state;
    this.onState(state);
  }

  #leave() {
    clearTimeout(this.#retry);
    clearTimeout(this.#silence);
    this.#abort?.abort();
    this.#abort = null;
  }

  #expectEvent() {
    clearTimeout(this.#silence);
    this.#silence = setTimeout(() => this.#lose("the server has fallen silent"), SILENCE_MS);
  }
}

function wordsOf(error) {
  // What fetch says of a network that is not there is the browser's affair, in words of its own.
  return error instanceof TypeError ? "the server cannot be reached" : error.message;
}

async function reasonOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered with status ${response.status}`;
  }
}
