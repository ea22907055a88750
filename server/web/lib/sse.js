// Reads server-sent events from a response's body.

/**
 * Give every event of a stream, as it comes; leaving the loop gives the connection up.
 *
 * @param {Response} response
 * @yields {{event: string, data: string}}
 */
export async function* readEvents(response) {
  let event = "message";
  let data = [];
  for await (const line of readLines(response)) {
    if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
    else if (line.startsWith("event:")) event = line.slice(6).trim();
    else if (!line && data.length) {
      yield { event, data: data.join("\n") };
      event = "message";
      data = [];
    }
  }
}

async function* readLines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  // Parts of a line that has not ended; joined once, however many there are.
  let parts = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = value.split("\n");
      for (const line of lines.slice(0, -1)) {
        const whole = parts.join("") + line;
        parts = [];
        yield whole.endsWith("\r") ? whole.slice(0, -1) : whole;
      }
      parts.push(lines.at(-1));
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
