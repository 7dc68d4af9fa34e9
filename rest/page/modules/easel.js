/** The prompt sheet: what to make, from what, how; sends it off and says what the server thinks of it. */

import { announce } from "./announce.js";
import { byId, h, icon, show } from "./dom.js";
import { FirstFrame } from "./first_frame.js";
import { createPath, fieldsOf, formOf, jobPath, multipart } from "./requests.js";
import { rewrite } from "./rewrite.js";
import { SettingsForm } from "./settings_form.js";
import { capitalised, shortened } from "./words.js";

const MODES = {
  video: {
    name: "Film",
    icon: "film",
    make: "Make film",
    placeholder: "A red fox crosses a frozen lake at dawn, its breath in the cold air, ice creaking…",
  },
  image: {
    name: "Image",
    icon: "image",
    make: "Make image",
    placeholder: "A lighthouse on a cliff, painted in watercolour, fog rolling in…",
  },
  audio: { name: "Sound", icon: "sound", make: "Make sound", placeholder: "Rain on a tin roof, a distant train…" },
};

const REFUSAL_MS = 400; // what is refused is refused at once; then the form says so, and there is no card for it

/** One form; tells `onMade(kind, job)` and `onDrawing(fields, events, abort)` what was begun. */
export class Easel {
  #able = null;
  #api;
  #chatModel = null;
  #firstFrame = new FirstFrame();
  #form = new SettingsForm();
  #handlers;
  #isReady = false;
  #mode = "video";
  #prompt = byId("prompt");
  #rewriting = null;
  #source = null;

  constructor(api, handlers) {
    this.#api = api;
    this.#handlers = handlers;
    byId("easel").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#make();
    });
    this.#prompt.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.#make();
    });
    this.#prompt.addEventListener("input", () => this.#showButtons());
    byId("source-remove").addEventListener("click", () => {
      this.#setSource(null);
      this.#prompt.focus();
    });
    this.#connectRewriting();
  }

  /** What can be made, and by whom prompts are rewritten. */
  update(able) {
    this.#isReady = true;
    this.#chatModel = able.chat[0]?.id ?? null;
    if (JSON.stringify(able) !== JSON.stringify(this.#able)) {
      this.#able = able;
      this.#showModes();
    }
    show(byId("rewrite"), this.#chatModel !== null);
    this.#showButtons();
  }

  /** There is no engine now; what is written waits. */
  pause() {
    this.#isReady = false;
    this.#showButtons();
  }

  /** Put words on the sheet. */
  write(text) {
    this.#prompt.value = text;
    this.#showButtons();
    this.#prompt.focus();
  }

  /** The prompt, seed and settings of something that was made. */
  reuse(kind, job) {
    this.#setSource(null);
    this.#setMode(kind);
    const form = formOf(job);
    this.#form.build(this.#able, this.#mode, form);
    this.write(form.prompt);
    announce("Seed and settings taken over");
  }

  /** Go on from the last frames of a film. */
  extend(job) {
    this.#setMode("video");
    this.#setSource({ what: "extend", job, text: `Goes on from “${shortened(job.prompt ?? "", 40)}”` });
    this.write(job.prompt ?? "");
  }

  /** Make a film again with another prompt. */
  remix(job) {
    this.#setMode("video");
    this.#setSource({
      what: "remix",
      job,
      text: `Remix of “${shortened(job.prompt ?? "", 40)}”: same seed and settings, your words`,
    });
    this.write(job.prompt ?? "");
  }

  // -- what to make ---------------------------------------------------------------------------------------------------

  #showModes() {
    const modes = this.#able.modes;
    if (!modes.includes(this.#mode)) this.#mode = modes[0] ?? "video";
    const choices = modes.map((mode) =>
      h(
        "label",
        {},
        h("input", {
          type: "radio",
          name: "mode",
          value: mode,
          checked: mode === this.#mode,
          onchange: () => this.#setMode(mode),
        }),
        icon(MODES[mode].icon),
        MODES[mode].name,
      ),
    );
    byId("modes").replaceChildren(h("legend", { class: "visually-hidden" }, "What to make"), ...choices);
    if (modes.length) this.#setMode(this.#mode);
  }

  #setMode(mode) {
    this.#mode = mode;
    for (const radio of byId("modes").querySelectorAll("input")) radio.checked = radio.value === mode;
    this.#form.build(this.#able, mode);
    this.#prompt.placeholder = MODES[mode].placeholder;
    if (mode !== "video") this.#setSource(null);
    this.#showButtons();
  }

  #setSource(source) {
    this.#source = source;
    show(byId("source"), source !== null);
    byId("source-text").textContent = source?.text ?? "";
    this.#showButtons();
  }

  #showButtons() {
    const source = this.#source?.what;
    const words = { extend: "Extend film", remix: "Remix film" }[source] ?? MODES[this.#mode].make;
    byId("make-text").textContent = words;
    byId("make").disabled = !this.#isReady || this.#rewriting !== null || !this.#prompt.value.trim();
    byId("rewrite").disabled = !this.#isReady || (!this.#prompt.value.trim() && !this.#rewriting);
    this.#firstFrame.isAllowed = this.#mode === "video" && !source;
    show(byId("quick"), source !== "remix");
    show(byId("more"), source !== "remix");
  }

  // -- sending --------------------------------------------------------------------------------------------------------

  async #make() {
    if (byId("make").disabled) return;
    const form = { ...this.#form.read(), prompt: this.#prompt.value, model: this.#able.media?.id };
    const fields = fieldsOf(this.#mode, form);
    this.#complain(null);
    byId("make").disabled = true;
    try {
      if (this.#mode === "image") await this.#draw(fields);
      else this.#handlers.onMade(this.#mode, await this.#begin(fields));
      announce(`${capitalised(MODES[this.#mode].name)} begun`);
      this.#setSource(null);
    } catch (error) {
      if (error.name !== "AbortError") this.#complain(error);
    }
    this.#showButtons();
  }

  #begin(fields) {
    const post = (path, json) => this.#api.json(path, { method: "POST", json });
    if (this.#source?.what === "remix")
      return post(`${jobPath("video", this.#source.job.id)}/remix`, { prompt: fields.prompt });
    if (this.#source?.what === "extend") {
      const { pipeline, width, height, ...rest } = fields; // a clip goes on in its own size
      return post("v1/videos/extensions", { ...rest, video: { id: this.#source.job.id } });
    }
    const file = this.#mode === "video" ? this.#firstFrame.file : null;
    if (!file) return post(createPath(this.#mode), fields);
    const strength = this.#firstFrame.strength;
    const more = strength === 1 ? {} : { input_reference_strength: strength };
    return this.#api.json(createPath("video"), {
      method: "POST",
      form: multipart({ ...fields, ...more }, { input_reference: file }),
    });
  }

  /** Images are made while one waits: the stream is read elsewhere, a refusal is told here. */
  async #draw(fields) {
    const abort = new AbortController();
    const json = { ...fields, stream: true, partial_images: 3 };
    const events = this.#api.events(createPath("image"), { method: "POST", json, signal: abort.signal });
    const begun = events.next(); // the request is out now; the first event, or a refusal, comes later
    await Promise.race([
      begun,
      new Promise((resolve) => {
        setTimeout(resolve, REFUSAL_MS);
      }),
    ]);
    this.#handlers.onDrawing({ fields, begun, events, abort });
  }

  #complain(error) {
    const place = byId("easel-error");
    show(place, error !== null);
    place.textContent = error?.message ?? "";
    if (error) this.#form.blame(error.param);
  }

  // -- rewriting ------------------------------------------------------------------------------------------------------

  #connectRewriting() {
    let before = "";
    const undo = byId("rewrite-undo");
    byId("rewrite").addEventListener("click", async () => {
      if (this.#rewriting) {
        this.#rewriting.abort();
        return;
      }
      before = this.#prompt.value;
      await this.#rewrite(before);
      show(undo, this.#prompt.value !== before);
    });
    undo.addEventListener("click", () => {
      this.write(before);
      show(undo, false);
    });
  }

  async #rewrite(idea) {
    this.#rewriting = new AbortController();
    byId("sheet").classList.add("is-rewriting");
    byId("rewrite-text").textContent = "Stop";
    this.#prompt.readOnly = true;
    this.#showButtons();
    this.#complain(null);
    this.#handlers.onRewriting();
    try {
      const options = {
        model: this.#chatModel,
        kind: this.#mode,
        signal: this.#rewriting.signal,
        onId: this.#handlers.onRewriteId,
      };
      for await (const text of rewrite(this.#api, idea, options)) this.#prompt.value = text;
      if (!this.#prompt.value.trim()) this.#prompt.value = idea;
      announce(`Rewritten: ${this.#prompt.value}`);
    } catch (error) {
      if (error.name !== "AbortError") this.#complain(error);
    }
    this.#rewriting = null;
    byId("sheet").classList.remove("is-rewriting");
    byId("rewrite-text").textContent = "Rewrite";
    this.#prompt.readOnly = false;
    this.#showButtons();
  }
}
