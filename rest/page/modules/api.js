/** Asking the server. Errors carry what it said; a 401 asks the person for a key, once for all who wait. */

import { readEvents } from "./sse.js";

/** What the server refused, in its own words. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = "", param = null, retryAfterS = null, body = null } = {}) {
    super(message);
    this.name = "ApiError";
    Object.assign(this, { status, code, param, retryAfterS, body });
  }

  /** Nobody answered: the server is gone, or the network. */
  get isOffline() {
    return this.status === 0;
  }
}

/** An error from a body in OpenAI's form, or from whatever else came. */
export function errorOf(status, body, retryAfter = null) {
  const error = body?.error ?? {};
  const message = error.message || `The server answered ${status} without saying why.`;
  const { code = "", param = null } = error;
  const retryAfterS = retryAfter === null ? null : Number(retryAfter);
  return new ApiError(message, { status, code, param, retryAfterS, body });
}

/** The server at this page's own address. */
export class Api {
  #askForKey;
  #asking = null;
  #keyStore;

  /**
   * @param keyStore `{get(), set(key)}`
   * @param askForKey (the server's message) → promise of a key, or null where the person gives none
   */
  constructor(keyStore, askForKey) {
    this.#keyStore = keyStore;
    this.#askForKey = askForKey;
  }

  get hasKey() {
    return Boolean(this.#keyStore.get());
  }

  /**
   * A response that is 2xx. `json` or `form` is the body. `isQuiet`: what runs by itself asks nobody for a key.
   * @throws ApiError, and AbortError where `signal` says so
   */
  async request(path, { method = "GET", json, form, signal, isQuiet = false, headers = {} } = {}) {
    let response = await this.#send(path, { method, json, form, signal, headers });
    while (response.status === 401 && !isQuiet) {
      const error = await readError(response);
      if (!(await this.#newKey(error.message))) throw error;
      response = await this.#send(path, { method, json, form, signal, headers });
    }
    if (!response.ok) throw await readError(response);
    return response;
  }

  async json(path, options) {
    return (await this.request(path, options)).json();
  }

  /** Events of a stream, their data decoded; `[DONE]` ends it. */
  async *events(path, options = {}) {
    const response = await this.request(path, { ...options, headers: { accept: "text/event-stream" } });
    for await (const { event, data } of readEvents(response)) {
      if (data === "[DONE]") return;
      const body = JSON.parse(data);
      if (body.error && event !== "done") throw errorOf(response.status, body);
      yield { event: event === "message" ? (body.type ?? event) : event, data: body };
    }
  }

  /** An address that an <img> or <video> can show. With a key the bytes are fetched, since elements send none. */
  async mediaUrl(path) {
    if (!this.hasKey) return path;
    const blob = await (await this.request(path, { isQuiet: true })).blob();
    return URL.createObjectURL(blob);
  }

  async #send(path, { method, json, form, signal, headers }) {
    const key = this.#keyStore.get();
    const sent = { ...headers };
    if (key) sent.authorization = `Bearer ${key}`;
    if (json !== undefined) sent["content-type"] = "application/json";
    try {
      return await fetch(path, {
        method,
        headers: sent,
        body: json === undefined ? form : JSON.stringify(json),
        signal,
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The server cannot be reached. Is it running, and is this machine online?", {
        code: "offline",
      });
    }
  }

  async #newKey(message) {
    this.#asking ??= this.#askForKey(message).finally(() => {
      this.#asking = null;
    });
    const key = await this.#asking;
    if (key) this.#keyStore.set(key);
    return Boolean(key);
  }
}

async function readError(response) {
  const body = await response.json().catch(() => null);
  return errorOf(response.status, body, response.headers.get("retry-after"));
}
