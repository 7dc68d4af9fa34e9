/** Every request is a thread of one colour: on the loom, on its card, beside its answer. */

const NUM_COLOURS = 7;
const REMEMBERED = 200;

/** Colours and names of requests by id. */
export class Threads {
  #known = new Map();
  #next = 0;

  /** The number of a request's colour; a new request gets the next one. */
  colourOf(id) {
    return this.#of(id).colour;
  }

  /** What people call it; the loom shows it. */
  name(id, text) {
    this.#of(id).text = text;
  }

  /** The same request has another id by now. */
  rename(id, newId) {
    this.#known.set(newId, this.#of(id));
    this.#known.delete(id);
  }

  nameOf(id) {
    return this.#known.get(id)?.text ?? null;
  }

  #of(id) {
    let thread = this.#known.get(id);
    if (!thread) {
      thread = { colour: this.#next, text: null };
      this.#next = (this.#next + 1) % NUM_COLOURS;
      this.#known.set(id, thread);
      if (this.#known.size > REMEMBERED) this.#known.delete(this.#known.keys().next().value);
    }
    return thread;
  }
}
