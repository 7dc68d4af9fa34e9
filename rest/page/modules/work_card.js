/** One work as a card: while it is made with preview, progress and cancel; then with its picture. */

import { h, icon, iconButton, show } from "./dom.js";
import { contentPath } from "./requests.js";
import { ago, clock, remaining, shortened, stageName } from "./words.js";

const FINAL = ["completed", "failed", "cancelled"];
const NAMES = { video: "Film", image: "Image", audio: "Sound" };
const ICONS = { video: "film", image: "image", audio: "sound" };
const PICTURE = { video: "thumbnail", image: "image" };

/** Whether nothing more will happen to a job. */
export function isFinal(job) {
  return FINAL.includes(job.status);
}

/** A card; `update` shows what is new without touching the rest, so focus stays where it is. */
export class WorkCard {
  #api;
  #badge = h("span", { class: "work-badge", hidden: true });
  #bar = h("progress", { class: "thread-bar", max: 100, value: 0 });
  #cancel;
  #face;
  #hasPicture = false;
  #line = h("span", { class: "space" });
  #picture = h("img", { alt: "", hidden: true, loading: "lazy" });
  #prompt = h("p", { class: "work-prompt" });
  #sign;

  constructor(api, { kind, isNew, onOpen, onCancel }) {
    this.#api = api;
    this.kind = kind;
    this.#sign = icon(ICONS[kind]);
    this.#sign.classList.add("large");
    this.#face = h(
      "button",
      { type: "button", class: "work-face is-waiting", onclick: onOpen },
      this.#sign,
      this.#picture,
      this.#badge,
    );
    this.#cancel = iconButton("close", "Cancel", onCancel);
    this.element = h(
      "li",
      { class: `work${isNew ? " is-new" : ""}` },
      this.#face,
      h(
        "div",
        { class: "work-words" },
        this.#prompt,
        this.#bar,
        h("div", { class: "work-line" }, this.#line, this.#cancel),
      ),
    );
  }

  /** The number of its thread's colour. */
  set colour(colour) {
    this.element.classList.add(`thread-${colour}`);
  }

  /** @param live what the events said beside the job: stage, step, num_steps, eta_s, preview */
  update(job, live = {}) {
    const prompt = job.prompt || job.params?.prompt || "Without a prompt";
    const isDone = isFinal(job);
    this.#prompt.textContent = prompt;
    this.element.classList.toggle("is-failed", job.status === "failed");
    this.element.dataset.status = job.status;
    this.element.dataset.id = job.id;
    this.#face.setAttribute(
      "aria-label",
      `${NAMES[this.kind]}: ${shortened(prompt, 80)}. ${isDone ? lineOf(this.kind, job) : "Being made"}`,
    );
    show(this.#bar, !isDone);
    show(this.#cancel, !isDone);
    this.#cancel.setAttribute("aria-label", `Cancel ${shortened(prompt, 40)}`);
    this.#line.textContent = isDone ? lineOf(this.kind, job) : progressLine(job, live);
    if (isDone) this.#finish(job);
    else this.#advance(job, live);
  }

  /** For focus after something else went away. */
  focus() {
    this.#face.focus();
  }

  #advance(job, live) {
    const percent = Math.max(live.progress ?? 0, job.progress ?? 0);
    this.#bar.value = percent;
    this.#bar.setAttribute("aria-label", `Progress of ${shortened(job.prompt ?? "", 40)}`);
    this.#bar.setAttribute("aria-valuetext", `${percent} %, ${this.#line.textContent}`);
    show(this.#badge, percent > 0);
    this.#badge.textContent = `${percent} %`;
    if (live.preview) this.#show(live.preview, "is-preview");
  }

  async #finish(job) {
    show(this.#badge, job.status === "completed" && this.kind !== "image");
    this.#badge.replaceChildren(...this.#badgeOf(job));
    this.#face.classList.remove("is-waiting");
    if (job.status !== "completed" || this.#hasPicture || !PICTURE[this.kind]) return;
    this.#hasPicture = true;
    try {
      this.#show(await this.#api.mediaUrl(contentPath(this.kind, job.id, PICTURE[this.kind])), "");
    } catch {
      this.#hasPicture = false; // the sign stays; opening it says why
    }
  }

  #badgeOf(job) {
    const seconds = Number(job.seconds) || (job.params?.num_frames ?? 0) / (job.params?.frame_rate || 24);
    const sound = this.kind === "video" && (job.files ?? []).includes("audio") ? [icon("sound")] : [];
    return [...sound, seconds < 10 ? `${seconds.toFixed(1)} s` : clock(seconds)];
  }

  #show(url, className) {
    this.#picture.src = url;
    this.#picture.className = className;
    show(this.#picture, true);
    show(this.#sign, false);
    this.#face.classList.remove("is-waiting");
  }
}

/** Width and height in pixels, where they are known. */
export function sizeOf(job) {
  if (job.params?.width) return [job.params.width, job.params.height];
  const match = /^(\d+)x(\d+)$/.exec(job.size ?? "");
  return match ? [Number(match[1]), Number(match[2])] : [0, 0];
}

function progressLine(job, live) {
  const position = live.queue_position ?? job.queue_position;
  if (job.status === "queued" && live.status !== "in_progress") {
    const eta = remaining(live.eta_s ?? job.eta_s);
    const place = position ? `Waiting, ${position} before it` : "Waiting its turn";
    return eta ? `${place} · ${eta}` : place;
  }
  const steps = live.num_steps > 1 ? `step ${live.step} of ${live.num_steps}` : "";
  return [stageName(live.stage ?? job.stage), steps, remaining(live.eta_s ?? job.eta_s)].filter(Boolean).join(" · ");
}

function lineOf(kind, job) {
  if (job.status === "failed") return job.error?.message ?? "It failed.";
  if (job.status === "cancelled") return `Cancelled · ${ago(job.created_at)}`;
  const [width, height] = kind === "audio" ? [0, 0] : sizeOf(job);
  return [width ? `${width} × ${height}` : "", ago(job.completed_at ?? job.created_at)].filter(Boolean).join(" · ");
}
