/** The fields under the prompt: only those that the chosen pipeline of the loaded model understands. */

import { defaultsOf, isGuided, mostFrames, pipelineName, pipelineOf, pipelinesOf, shapes } from "./abilities.js";
import { byId, h, icon, show } from "./dom.js";
import { length } from "./words.js";

const SHAPE_NONE = "own";

/** Builds the fields of a mode, reads them, and fills them in again. Empty fields leave the choice to the server. */
export class SettingsForm {
  #able = null;
  #fields = {};
  #loras = [];
  #mode = "video";
  #pipeline = null;
  #shape = null;

  /** Fields for this mode; what was written and still fits is kept. */
  build(able, mode, kept = this.#able ? this.read() : {}) {
    this.#able = able;
    this.#mode = mode;
    this.#pipeline = pipelineOf(able, mode, kept.pipeline);
    this.#fields = {};
    byId("quick").replaceChildren(...this.#quick());
    byId("settings").replaceChildren(...this.#all());
    this.fill({ ...kept, pipeline: kept.pipeline && this.#pipeline?.name === kept.pipeline ? kept.pipeline : null });
  }

  /** What is written, numbers as numbers; null where nothing is. */
  read() {
    const form = Object.fromEntries(Object.entries(this.#fields).map(([name, field]) => [name, valueOf(field)]));
    if (this.#shape && this.#shape !== SHAPE_NONE)
      Object.assign(form, { width: this.#shape.width, height: this.#shape.height });
    form.loras = this.#loras
      .filter(({ box }) => box.checked)
      .map(({ name, range }) => ({ name, strength: Number(range.value) }));
    return form;
  }

  /** Write values into the fields there are. */
  fill(form) {
    for (const [name, field] of Object.entries(this.#fields)) {
      const value = form[name];
      if (value === null || value === undefined) continue;
      if (field.type === "checkbox") field.checked = Boolean(value);
      else field.value = value;
      field.dispatchEvent(new Event("input"));
    }
    if (form.width && form.height) this.#chooseShape(form.width, form.height);
    for (const { name, box, range } of this.#loras) {
      const wanted = form.loras?.find((lora) => lora.name === name);
      if (!form.loras) continue;
      box.checked = Boolean(wanted);
      if (wanted) range.value = wanted.strength;
      range.dispatchEvent(new Event("input"));
    }
  }

  /** Marks the field that the server complained about; opens the place where it stands. */
  blame(param) {
    const field = this.#fields[(param ?? "").split(".")[0]];
    for (const each of Object.values(this.#fields)) each.removeAttribute("aria-invalid");
    if (!field) return false;
    if (byId("more").contains(field)) byId("more").open = true;
    field.setAttribute("aria-invalid", "true");
    field.focus();
    return true;
  }

  // -- what stands where ----------------------------------------------------------------------------------------------

  #quick() {
    const defaults = defaultsOf(this.#pipeline);
    const parts = [];
    if (this.#mode !== "audio") parts.push(this.#shapes(defaults));
    if (this.#mode !== "image") parts.push(this.#length(defaults));
    if (this.#mode === "video" && this.#able.hasAudio) parts.push(this.#sound());
    return parts;
  }

  #all() {
    const defaults = defaultsOf(this.#pipeline);
    const parts = [this.#pipelines()];
    if (this.#mode !== "audio") {
      const step = this.#pipeline?.size_multiple ?? 32;
      parts.push(this.#number("width", "Width", defaults.width, { step, min: step }));
      parts.push(this.#number("height", "Height", defaults.height, { step, min: step }));
    }
    if (this.#mode !== "image")
      parts.push(this.#number("frame_rate", "Frames a second", defaults.frame_rate, { min: 1, step: "any" }));
    parts.push(this.#number("num_inference_steps", "Steps", defaults.num_inference_steps, { min: 1, step: 1 }));
    parts.push(this.#seed());
    if (isGuided(this.#pipeline)) parts.push(...this.#guidance(defaults));
    if (this.#able.loras.length) parts.push(this.#loraList());
    if (isGuided(this.#pipeline)) parts.push(this.#negative(defaults));
    return parts.filter(Boolean);
  }

  #guidance(defaults) {
    const scale = (stream) => defaults.guidance[stream]?.guidance_scale;
    const isHeard = this.#able.hasAudio && this.#mode !== "image";
    return [
      this.#mode !== "audio" &&
        this.#number("guidance_video", "Guidance of the picture", scale("video"), { step: "any", min: 0 }),
      isHeard && this.#number("guidance_audio", "Guidance of the sound", scale("audio"), { step: "any", min: 0 }),
    ].filter(Boolean);
  }

  // -- single fields --------------------------------------------------------------------------------------------------

  #pipelines() {
    const there = pipelinesOf(this.#able, this.#mode);
    if (there.length < 2) return null;
    const select = h(
      "select",
      { id: "set-pipeline" },
      h("option", { value: "" }, "The model's best"),
      ...there.map(({ name }) => h("option", { value: name }, pipelineName(name))),
    );
    select.addEventListener("change", () => {
      const kept = this.read();
      this.#pipeline = pipelineOf(this.#able, this.#mode, select.value);
      this.build(this.#able, this.#mode, kept);
      byId("set-pipeline").focus();
    });
    this.#fields.pipeline = select;
    return h("label", { class: "field" }, "Pipeline ", select);
  }

  #number(name, label, placeholder, attributes) {
    const input = h("input", {
      type: "number",
      id: `set-${name}`,
      inputmode: "decimal",
      placeholder: placeholder ?? "As the model likes",
      ...attributes,
    });
    this.#fields[name] = input;
    if (name === "width" || name === "height") input.addEventListener("change", () => this.#sizeWasWritten());
    return h("label", { class: "field" }, `${label} `, input);
  }

  #seed() {
    const input = h("input", { type: "number", id: "set-seed", min: 0, step: 1, placeholder: "Drawn anew" });
    const dice = h(
      "button",
      {
        type: "button",
        class: "icon-button",
        "aria-label": "Draw a seed",
        title: "Draw a seed",
        onclick: () => {
          input.value = crypto.getRandomValues(new Uint32Array(1))[0];
        },
      },
      icon("dice"),
    );
    this.#fields.seed = input;
    return h(
      "div",
      { class: "field" },
      h("label", { for: "set-seed" }, "Seed"),
      h("span", { class: "pair" }, input, dice),
    );
  }

  #negative(defaults) {
    const area = h("textarea", {
      id: "set-negative_prompt",
      rows: 2,
      placeholder: defaults.negative_prompt || "What should not be seen or heard",
    });
    this.#fields.negative_prompt = area;
    return h("label", { class: "field full" }, "Negative prompt ", area);
  }

  #loraList() {
    this.#loras = this.#able.loras.map(({ name, strengths }) => ({
      name,
      box: h("input", { type: "checkbox" }),
      range: h("input", {
        type: "range",
        min: 0,
        max: 2,
        step: 0.05,
        value: strengths?.[0] ?? 1,
        "aria-label": `Strength of ${name}`,
      }),
      shown: h("output", {}, String(strengths?.[0] ?? 1)),
    }));
    const rows = this.#loras.map(({ name, box, range, shown }) => {
      range.addEventListener("input", () => {
        shown.textContent = range.value;
      });
      return h("label", {}, box, h("span", {}, name), range, shown);
    });
    return h("fieldset", { class: "field full" }, h("legend", {}, "LoRAs"), h("div", { class: "loras" }, ...rows));
  }

  #length(defaults) {
    const multiple = this.#able.frameMultiple;
    const most = mostFrames(defaults, multiple);
    const range = h("input", {
      type: "range",
      id: "set-num_frames",
      min: multiple + 1,
      max: most,
      step: multiple,
      value: defaults.num_frames,
    });
    const shown = h("output", { for: "set-num_frames" });
    const tell = () => {
      const rate = Number(this.#fields.frame_rate?.value) || defaults.frame_rate;
      shown.textContent = `${length(Number(range.value), rate)} · ${range.value} frames`;
      range.setAttribute("aria-valuetext", shown.textContent);
    };
    range.addEventListener("input", tell);
    tell();
    this.#fields.num_frames = range;
    return h("label", { class: "field wide" }, "Length ", h("span", { class: "range-row" }, range, shown));
  }

  #sound() {
    const box = h("input", { type: "checkbox", id: "set-generate_audio", checked: true });
    this.#fields.generate_audio = box;
    return h("label", { class: "toggle" }, box, "With sound");
  }

  // -- shapes ---------------------------------------------------------------------------------------------------------

  #shapes(defaults) {
    const choices = shapes(defaults, this.#pipeline?.size_multiple ?? 32);
    const isDefault = (shape) => shape.width === defaults.width && shape.height === defaults.height;
    const radios = choices.map((shape) => {
      const radio = h("input", {
        type: "radio",
        name: "shape",
        value: `${shape.width}x${shape.height}`,
        checked: isDefault(shape),
        onchange: () => this.#shapeWasChosen(isDefault(shape) ? null : shape),
      });
      return h(
        "label",
        { title: `${shape.width} × ${shape.height}` },
        radio,
        h("span", { class: `shape is-${shape.kind}`, "aria-hidden": "true" }),
        shape.name,
        h("span", { class: "visually-hidden" }, `${shape.width} by ${shape.height}`),
      );
    });
    const own = h(
      "label",
      { id: "shape-own", hidden: true },
      h("input", { type: "radio", name: "shape", value: SHAPE_NONE }),
      h("span", {}, "Own size"),
    );
    this.#shape = null;
    return h("fieldset", { class: "field" }, h("legend", {}, "Shape"), h("div", { class: "shapes" }, ...radios, own));
  }

  #shapeWasChosen(shape) {
    this.#shape = shape;
    this.#fields.width.value = shape?.width ?? "";
    this.#fields.height.value = shape?.height ?? "";
  }

  #chooseShape(width, height) {
    const radio = byId("quick").querySelector(`input[name="shape"][value="${Number(width)}x${Number(height)}"]`);
    this.#fields.width.value = width;
    this.#fields.height.value = height;
    this.#shape = SHAPE_NONE;
    if (radio) radio.checked = true;
    else this.#sizeWasWritten();
  }

  #sizeWasWritten() {
    const [width, height] = [this.#fields.width.value, this.#fields.height.value];
    this.#shape = SHAPE_NONE;
    const radio = byId("quick").querySelector(`input[name="shape"][value="${width}x${height}"]`);
    const own = byId("shape-own");
    if (!own) return;
    show(own, !radio);
    (radio ?? own.querySelector("input")).checked = true;
    own.querySelector("span").textContent = `${width || "?"} × ${height || "?"}`;
  }
}

function valueOf(field) {
  if (field.type === "checkbox") return field.checked;
  if (field.value === "") return null;
  return field.type === "number" || field.type === "range" ? Number(field.value) : field.value;
}
