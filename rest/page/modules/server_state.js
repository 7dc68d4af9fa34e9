/** What the server can do now: asks `/ready` again and again, and `/v1/models` when that changed. */

const WAITING_MS = 1500;
const READY_MS = 10_000;

/** Tells `onChange` of a state: `{server: "loading" | "ready" | "offline", reason, modalities, models}`. */
export class ServerState {
  #api;
  #last = "";
  #onChange;
  #timer = 0;
  models = [];

  constructor(api, onChange) {
    this.#api = api;
    this.#onChange = onChange;
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.look(); });
    addEventListener("online", () => this.look());
    addEventListener("offline", () => this.look());
  }

  /** Ask now, and from time to time again. */
  async look() {
    clearTimeout(this.#timer);
    const state = await this.#ask();
    clearTimeout(this.#timer);
    const isWaiting = state.server !== "ready" || Object.values(state.modalities).some((one) => isComing(one));
    this.#timer = setTimeout(() => { if (!document.hidden) this.look(); }, isWaiting ? WAITING_MS : READY_MS);
    const told = JSON.stringify(state);
    if (told === this.#last) return;
    this.#last = told;
    this.#onChange(state);
  }

  async #ask() {
    try {
      const ready = await this.#ready();
      if (!ready.ready) return { server: "loading", reason: firstReason(ready), modalities: ready.modalities, models: [] };
      this.models = (await this.#api.json("v1/models")).data;
      return { server: "ready", reason: "", modalities: ready.modalities, models: this.models };
    } catch (error) {
      const server = error.isOffline ? "offline" : "loading";
      return { server, reason: error.message, modalities: {}, models: [] };
    }
  }

  /** A 503 is an answer here: its body says what the server waits for. */
  async #ready() {
    try {
      return await this.#api.json("ready");
    } catch (error) {
      if (error.status === 503 && error.body?.modalities) return error.body;
      throw error;
    }
  }
}

function isComing(modality) {
  return !modality.ready && /load|start|wait/i.test(modality.reason ?? "");
}

function firstReason(ready) {
  return Object.values(ready.modalities ?? {}).map((one) => one.reason).find(Boolean) ?? "the engine is starting";
}
