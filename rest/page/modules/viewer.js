/** One work, large: what it is, what it was made of, and what can be done with it. */

import { byId, h, icon, iconButton, show } from "./dom.js";
import { pipelineName } from "./abilities.js";
import { contentPath } from "./requests.js";
import { isFinal, sizeOf } from "./work_card.js";
import { shortened, stageName } from "./words.js";

const VARIANT = { video: "video", image: "image", audio: "audio" };
const LONG = 120;
const SUFFIX = { video: ".mp4", image: ".png", audio: ".wav" };

/** A dialog; `handlers`: `onReuse`, `onExtend`, `onRemix`, `onDelete`, `onCancel`. */
export class Viewer {
  #api;
  #dialog = byId("viewer");
  #handlers;
  #shownStatus = "";
  #work = null;

  constructor(api, handlers) {
    this.#api = api;
    this.#handlers = handlers;
    this.#dialog.addEventListener("close", () => {
      if (this.#dialog.open) return; // the event comes late: it is open again
      this.#dialog.replaceChildren(); // a film that nobody sees does not play on
      this.#work?.card.focus();
      this.#work = null;
    });
    this.#dialog.addEventListener("click", (event) => {
      if (event.target === this.#dialog) this.#dialog.close();
    });
  }

  open(work) {
    this.#work = work;
    this.#draw();
    this.#dialog.showModal();
  }

  /** A work has news; it is drawn again if it is the one shown and has ended. */
  changed(work) {
    if (work === this.#work && work.job.status !== this.#shownStatus) this.#draw();
  }

  #draw() {
    const { job } = this.#work;
    this.#shownStatus = job.status;
    const stage = h("div", { class: "viewer-stage" });
    const problem = h("p", { class: "form-error", role: "alert", hidden: true });
    this.#dialog.replaceChildren(
      h(
        "div",
        { class: "viewer-body" },
        stage,
        h(
          "div",
          { class: "viewer-side" },
          h(
            "div",
            { class: "viewer-top" },
            h("h2", { id: "viewer-title" }, job.prompt || "Without a prompt"),
            iconButton("close", "Close", () => this.#dialog.close()),
          ),
          job.error ? h("p", { class: "form-error" }, job.error.message) : null,
          h("div", { class: "viewer-actions" }, ...this.#actions(problem)),
          problem,
          facts(this.#work),
          ...notes(job),
        ),
      ),
    );
    this.#stage(stage, problem);
  }

  async #stage(stage, problem) {
    const { kind, job, live } = this.#work;
    if (job.status !== "completed") {
      stage.append(live.preview ? h("img", { src: live.preview, alt: "Preview" }) : h("p", {}, stageOf(job, live)));
      return;
    }
    const shown = player(kind, job); // takes its room before it has loaded: nothing moves under the pointer
    stage.append(shown);
    try {
      shown.src = await this.#api.mediaUrl(contentPath(kind, job.id, VARIANT[kind]));
    } catch (error) {
      tell(problem, error);
    }
  }

  #actions(problem) {
    const { kind, job } = this.#work;
    const work = this.#work;
    const leave = (act) => () => {
      this.#work = null; // focus goes where the action leads
      this.#dialog.close();
      act();
    };
    const action = (name, label, onclick) =>
      h("button", { type: "button", class: "quiet", onclick }, icon(name), label);
    const attempt = (act) => async () => {
      try {
        await act();
      } catch (error) {
        tell(problem, error);
      }
    };
    if (!isFinal(job))
      return [
        action(
          "close",
          "Cancel",
          attempt(() => this.#handlers.onCancel(work)),
        ),
      ];
    const isFilm = kind === "video" && job.status === "completed";
    return [
      action(
        "again",
        "Reuse settings",
        leave(() => this.#handlers.onReuse(kind, job)),
      ),
      isFilm &&
        action(
          "extend",
          "Extend",
          leave(() => this.#handlers.onExtend(job)),
        ),
      isFilm &&
        action(
          "remix",
          "Remix",
          leave(() => this.#handlers.onRemix(job)),
        ),
      job.status === "completed" &&
        action(
          "save",
          "Download",
          attempt(() => this.#download()),
        ),
      action(
        "bin",
        "Delete",
        attempt(async () => {
          if (await this.#handlers.onDelete(work)) leave(() => {})();
        }),
      ),
    ].filter(Boolean);
  }

  async #download() {
    const { kind, job } = this.#work;
    const url = await this.#api.mediaUrl(contentPath(kind, job.id, VARIANT[kind]));
    h("a", { href: url, download: `${job.id}${SUFFIX[kind]}` }).click();
  }
}

function tell(place, error) {
  place.textContent = error.message;
  show(place, true);
}

function player(kind, job) {
  const label = job.prompt ?? "";
  if (kind === "audio") return h("audio", { controls: true, "aria-label": label });
  const [width, height] = sizeOf(job);
  if (kind === "image") return h("img", { width, height, alt: label });
  const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
  return h("video", {
    width,
    height,
    controls: true,
    loop: true,
    playsinline: true,
    autoplay: !isStill,
    "aria-label": label,
  });
}

function stageOf(job, live) {
  if (job.status === "failed") return "It failed.";
  if (job.status === "cancelled") return "It was cancelled.";
  return stageName(live.stage ?? job.stage ?? "queued");
}

function facts({ kind, job }) {
  const params = job.params ?? {};
  const [width, height] = sizeOf(job);
  const scale = (stream) => params.guidance?.[stream]?.guidance_scale;
  const rows = [
    ["Size", width && kind !== "audio" ? `${width} × ${height}` : null],
    [
      "Length",
      kind !== "image" && params.num_frames ? `${params.num_frames} frames at ${params.frame_rate} a second` : null,
    ],
    ["Seed", params.seed],
    ["Pipeline", params.pipeline ? pipelineName(params.pipeline) : null],
    ["Steps", params.num_inference_steps],
    ["Guidance", [scale("video"), scale("audio")].filter((value) => value !== undefined).join(" · ") || null],
    ["LoRAs", names(params.adapters)],
    ["Negative", params.negative_prompt || null],
    ["Made", job.completed_at ? `${new Date(job.completed_at * 1000).toLocaleString()}${took(job)}` : null],
    ["Id", job.id],
  ].filter(([, value]) => value !== null && value !== undefined && value !== "");
  return h(
    "dl",
    { class: "facts" },
    ...rows.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, folded(String(value)))]),
  );
}

/** A long text behind its beginning. */
function folded(text) {
  if (text.length <= LONG) return text;
  return h("details", {}, h("summary", {}, shortened(text, LONG / 2)), text);
}

function took(job) {
  return job.started_at ? `, in ${(job.completed_at - job.started_at).toFixed(1)} s` : "";
}

function names(adapters) {
  if (!adapters?.length) return null;
  return adapters.map((adapter) => (Array.isArray(adapter) ? adapter[0] : (adapter.name ?? adapter))).join(", ");
}

function notes(job) {
  return (job.notes ?? []).map((note) => h("p", { class: "notes" }, note.text ?? String(note)));
}
