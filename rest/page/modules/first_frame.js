/** The picture that a film begins with: chosen, dropped or pasted. */

import { announce } from "./announce.js";
import { byId, show } from "./dom.js";

/** Holds one picture and how strongly it acts. */
export class FirstFrame {
  #file = null;
  #isAllowed = false;
  #url = "";

  constructor() {
    const chooser = byId("reference-file");
    byId("reference-button").addEventListener("click", () => chooser.click());
    chooser.addEventListener("change", () => {
      this.take(chooser.files[0]);
      chooser.value = "";
    });
    byId("reference-remove").addEventListener("click", () => {
      this.clear();
      byId("reference-button").focus();
    });
    const strength = byId("reference-strength");
    strength.addEventListener("input", () => {
      byId("reference-strength-value").textContent = strength.value;
    });
    byId("easel").addEventListener("paste", (event) => {
      if (this.take(pictureOf(event.clipboardData))) event.preventDefault();
    });
    this.#connectDrop(byId("studio"));
  }

  /** Whether what is being made can begin with a picture. */
  set isAllowed(isAllowed) {
    this.#isAllowed = isAllowed;
    show(byId("reference-button"), isAllowed);
    show(byId("reference"), isAllowed && this.#file !== null);
  }

  get file() {
    return this.#isAllowed ? this.#file : null;
  }

  get strength() {
    return Number(byId("reference-strength").value);
  }

  /** Use this file; false if it is no picture, or none is wanted. */
  take(file) {
    if (!file?.type.startsWith("image/") || !this.#isAllowed) return false;
    this.clear();
    this.#file = file;
    this.#url = URL.createObjectURL(file);
    byId("reference-image").src = this.#url;
    byId("reference-image").alt = `First frame: ${file.name}`;
    show(byId("reference"), true);
    announce(`First frame: ${file.name}`);
    return true;
  }

  clear() {
    if (this.#url) URL.revokeObjectURL(this.#url);
    this.#file = null;
    this.#url = "";
    show(byId("reference"), false);
  }

  #connectDrop(target) {
    const curtain = byId("drop");
    let depth = 0; // enter and leave come for every child
    const isPicture = (event) => this.#isAllowed && [...event.dataTransfer.items].some((item) => item.kind === "file");
    target.addEventListener("dragenter", (event) => {
      if (isPicture(event)) depth += 1;
      curtain.classList.toggle("is-over", depth > 0);
    });
    target.addEventListener("dragleave", () => {
      depth = Math.max(0, depth - 1);
      curtain.classList.toggle("is-over", depth > 0);
    });
    target.addEventListener("dragover", (event) => {
      if (isPicture(event)) event.preventDefault();
    });
    target.addEventListener("drop", (event) => {
      depth = 0;
      curtain.classList.remove("is-over");
      if (this.take(pictureOf(event.dataTransfer))) event.preventDefault();
    });
  }
}

function pictureOf(data) {
  return [...(data?.files ?? [])].find((file) => file.type.startsWith("image/"));
}
