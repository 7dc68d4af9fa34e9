/** What the server can do now: asks `/ready` again and again, and `/v1/models` when that changed. */

const WAITING_MS = 1500;
const READY_MS = 10_000;

/** Tells `onChange` of a state: `{server: "loading" | "ready" | "locked" | "offline", reason, modalities, models}`. */
export class ServerState {
  #api;
  #isLocked = false;
  #last = "";
  #onChange;
  #timer = 0;
  models = [];

  constructor(api, onChange) {
    this.#api = api;
    this.#onChange = onChange;
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.look();
    });
    addEventListener("online", () => this.look());
    addEventListener("offline", () => this.look());
  }

  /** There is another key: it may open what was locked. */
  unlock() {
    this.#isLocked = false;
    return this.look();
  }

  /** Ask now, and from time to time again. */
  async look() {
    clearTimeout(this.#timer);
    const state = await this.#ask();
    clearTimeout(this.#timer);
    const isWaiting = state.server !== "ready" || isMediaComing(state.modalities);
    this.#timer = setTimeout(
      () => {
        if (!document.hidden) this.look();
      },
      isWaiting ? WAITING_MS : READY_MS,
    );
    const told = JSON.stringify(state);
    if (told === this.#last) return;
    this.#last = told;
    this.#onChange(state);
  }

  async #ask() {
    try {
      const ready = await this.#ready();
      if (!ready.ready)
        return { server: "loading", reason: firstReason(ready), modalities: ready.modalities, models: [] };
      this.models = (await this.#api.json("v1/models", { isQuiet: this.#isLocked })).data;
      this.#isLocked = false;
      return { server: "ready", reason: "", modalities: ready.modalities, models: this.models };
    } catch (error) {
      this.#isLocked = error.status === 401; // whoever has no key is not asked again and again
      const server = error.isOffline ? "offline" : this.#isLocked ? "locked" : "loading";
      return { server, reason: error.message, modalities: {}, models: [] };
    }
  }

  /** A 503 is an answer here: its body says what the server waits for. */
  async #ready() {
    try {
      return await this.#api.json("ready", { isQuiet: this.#isLocked });
    } catch (error) {
      if (error.status === 503 && error.body?.modalities) return error.body;
      throw error;
    }
  }
}

/** Whether a model for pictures or films is on its way into memory. */
export function isMediaComing(modalities) {
  return ["video", "image"].some(
    (name) =>
      /\b(is|are|being) (still )?load(ing|ed)\b/.test(modalities[name]?.reason ?? "") &&
      !/^no /.test(modalities[name].reason),
  );
}

function firstReason(ready) {
  return (
    Object.values(ready.modalities ?? {})
      .map((one) => one.reason)
      .find(Boolean) ?? "the engine is starting"
  );
}
