/** Questions to the person: for an API key, and before something is lost. */

import { byId, show } from "./dom.js";

/** Asks for a key; gives it, or null. */
export class KeyDialog {
  #dialog = byId("key-dialog");
  #input = byId("key-input");
  #keyStore;
  #resolve = null;

  constructor(keyStore) {
    this.#keyStore = keyStore;
    byId("key-cancel").addEventListener("click", () => this.#dialog.close());
    byId("key-forget").addEventListener("click", () => {
      keyStore.remove();
      this.#dialog.close();
    });
    byId("key-form").addEventListener("submit", () => {
      const key = this.#input.value.trim();
      this.#answer(key || null);
    });
    this.#dialog.addEventListener("close", () => {
      if (!this.#dialog.open) this.#answer(null); // else it comes late: it is open again
    });
  }

  /** @param message why, in the server's words; none when the person opened it */
  ask(message = "If your server asks for a key, enter it here.") {
    byId("key-message").textContent = message;
    this.#input.value = "";
    show(byId("key-forget"), Boolean(this.#keyStore.get()));
    if (!this.#dialog.open) this.#dialog.showModal();
    this.#input.focus();
    return new Promise((resolve) => {
      this.#resolve = resolve;
    });
  }

  #answer(key) {
    const resolve = this.#resolve;
    this.#resolve = null;
    resolve?.(key);
  }
}

/** Asks before something is lost; gives whether to go on. */
export function confirmLoss(title, text, action = "Delete") {
  const dialog = byId("confirm");
  byId("confirm-title").textContent = title;
  byId("confirm-text").textContent = text;
  byId("confirm-yes").textContent = action;
  dialog.showModal();
  return new Promise((resolve) => {
    const asking = new AbortController();
    const answer = (isYes) => {
      asking.abort();
      resolve(isYes);
    };
    const { signal } = asking;
    dialog.addEventListener("submit", ({ submitter }) => answer(submitter?.value === "yes"), { signal });
    dialog.addEventListener("cancel", () => answer(false), { signal });
    // by another way; the question before this one may be told of as late as now
    dialog.addEventListener("close", () => dialog.open || answer(false), { signal });
  });
}
