// One answer on its way: asks, takes what comes, and tells who listens. It goes on when nobody does.

import { stream } from "../lib/api.js";
import { toldError } from "../lib/error_box.js";
import { forgetModel, servedModel } from "../lib/server_state.js";
import { Trace, paceOf } from "../tokens/trace.js";
import { requestFields } from "./settings.js";

/** What fills a message. */
export class AnswerRun {
  trace = new Trace();
  isOver = false;
  #abort = new AbortController();
  #listener = null;
  #message;

  /** @param {object} message an empty one, to be filled. */
  constructor(message) {
    this.#message = message;
  }

  /** Let one listener hear of every change: `onChange(run)`. */
  listen(onChange) {
    this.#listener = onChange;
  }

  /** Give the answer up; the server is told by the connection's end. */
  stop() {
    this.#abort.abort();
  }

  /** Ask, and fill the message until the answer is over, however it ends. */
  async run(messages, settings) {
    const message = this.#message;
    const start = performance.now();
    try {
      const { name, isSynthetic } = await servedModel();
      const body = {
        model: name,
        messages,
        stream: true,
        stream_options: { include_usage: true },
        ...requestFields(settings, !isSynthetic),
      };
      message.seed = body.seed;
      for await (const chunk of stream("v1/chat/completions", body, this.#abort.signal)) {
        this.#take(chunk);
      }
    } catch (error) {
      if (this.#abort.signal.aborted) message.finish = "stopped";
      else message.error = toldError(error);
      if (error.status === 404) forgetModel();
    }
    message.ms = performance.now() - start;
    message.pace = paceOf(this.trace);
    this.isOver = true;
    this.#listener?.(this);
  }

  #take(chunk) {
    const message = this.#message;
    const [choice] = chunk.choices;
    if (choice) {
      message.content += choice.delta.content ?? "";
      if (choice.delta.reasoning_content) {
        message.reasoning = (message.reasoning ?? "") + choice.delta.reasoning_content;
      }
      message.finish = choice.finish_reason ?? message.finish;
    }
    if (chunk.provenance) this.trace.add(chunk.provenance.passes);
    if (chunk.usage) message.usage = chunk.usage;
    this.#listener?.(this);
  }
}
