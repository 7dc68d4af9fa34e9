/** Server-sent events over fetch: `EventSource` can send no key, and reads no error's body. */

/** From pieces of text, cut anywhere, to events. */
export class EventParser {
  #rest = "";
  #event = "";
  #data = [];

  /** The events that are complete with this piece: `{event, data}`. */
  push(text) {
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
    const events = [];
    for (const line of lines) {
      if (line === "") this.#end(events);
      else this.#field(line);
    }
    return events;
  }

  #field(line) {
    if (line.startsWith(":")) return; // a comment keeps the connection open
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") this.#data.push(value);
    else if (name === "event") this.#event = value;
  }

  #end(events) {
    if (this.#data.length) events.push({ event: this.#event || "message", data: this.#data.join("\n") });
    this.#event = "";
    this.#data = [];
  }
}

/** The events of a response, as they come. */
export async function* readEvents(response) {
  const parser = new EventParser();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* parser.push(value);
    }
  } finally {
    reader.cancel().catch(() => {}); // whoever stops listening frees the server's work
  }
}
