/** All that was made and is being made, as the server has it: a reload loses nothing. */

import { announce } from "./announce.js";
import { confirmLoss } from "./dialogs.js";
import { byId, show } from "./dom.js";
import { jobPath, listPath } from "./requests.js";
import { Viewer } from "./viewer.js";
import { WorkCard, isFinal } from "./work_card.js";
import { shortened } from "./words.js";

const PAGE = 24;
const BUSY_MS = 2500;
const CALM_MS = 20_000;
const MOST_FOLLOWED = 3; // a browser opens six connections to a server; chat needs some of them
const ADOPT_S = 30;
const ENDS = { completed: "Finished", failed: "Failed", cancelled: "Cancelled" };

/** The list of works; `handlers`: `onReuse(kind, job)`, `onExtend(job)`, `onRemix(job)`. */
export class Gallery {
  #api;
  #cursors = new Map();
  #drawings = new Set();
  #isLoaded = false;
  #kinds = [];
  #problem = "";
  #threads;
  #timer = 0;
  #viewer;
  #works = new Map();

  constructor(api, threads, handlers) {
    this.#api = api;
    this.#threads = threads;
    this.#viewer = new Viewer(api, {
      ...handlers,
      onDelete: (work) => this.#delete(work),
      onCancel: (work) => this.#cancel(work),
    });
    byId("gallery-more").addEventListener("click", () => this.#loadOlder());
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.refresh();
    });
  }

  /** Which kinds there are to list. */
  update(kinds) {
    if (kinds.join() === this.#kinds.join()) return;
    this.#kinds = kinds;
    show(byId("gallery"), kinds.length > 0);
    this.refresh();
  }

  /** A job that was just taken in. */
  made(kind, job) {
    this.#take(kind, job, { isNew: true });
    this.#lookAgain();
  }

  /** An image that is being drawn while its stream lasts; the job behind it is found by its id, or in the list. */
  async drawing({ fields, begun, events, abort }) {
    const drawing = {
      id: `drawing-${crypto.getRandomValues(new Uint32Array(1))[0]}`,
      prompt: fields.prompt,
      began: Date.now() / 1000,
      abort,
    };
    this.#drawings.add(drawing);
    const job = {
      id: drawing.id,
      status: "in_progress",
      prompt: fields.prompt,
      params: fields,
      created_at: drawing.began,
    };
    this.#take("image", job, { isNew: true });
    this.#lookAgain(300);
    try {
      for (let next = await begun; !next.done; next = await events.next()) this.#partial(drawing, next.value.data);
    } catch (error) {
      const work = this.#works.get(drawing.id);
      if (work && error.name !== "AbortError") this.#take("image", { ...work.job, status: "failed", error });
    }
    this.#drawings.delete(drawing);
    if (this.#works.get(drawing.id)?.job.status !== "failed") this.#remove(drawing.id);
    await this.refresh();
  }

  /** The newest works of the server. */
  async refresh() {
    clearTimeout(this.#timer);
    this.#problem = "";
    const lists = await Promise.all(this.#kinds.map((kind) => this.#list(kind)));
    lists.forEach((jobs, index) => jobs.forEach((job) => this.#take(this.#kinds[index], job)));
    if (lists.length && !lists.some((jobs) => jobs.failed)) this.#dropMissing(lists);
    this.#isLoaded ||= lists.length > 0;
    this.#showState();
    this.#lookAgain();
  }

  // -- from the server ------------------------------------------------------------------------------------------------

  async #list(kind, after = null) {
    const query = new URLSearchParams({ limit: String(PAGE), order: "desc", ...(after ? { after } : {}) });
    try {
      const page = await this.#api.json(`${listPath(kind)}?${query}`, { isQuiet: true });
      const known = this.#cursors.get(kind);
      if (after || !known)
        this.#cursors.set(kind, { last: page.last_id ?? page.data.at(-1)?.id, hasMore: page.has_more });
      return page.data;
    } catch (error) {
      this.#problem = error.isOffline ? "" : error.message; // the masthead says when the server is away
      return Object.assign([], { failed: true });
    }
  }

  async #loadOlder() {
    const more = [...this.#cursors].filter(([, { hasMore }]) => hasMore);
    const lists = await Promise.all(more.map(([kind, { last }]) => this.#list(kind, last)));
    lists.forEach((jobs, index) => jobs.forEach((job) => this.#take(more[index][0], job)));
    this.#showState();
  }

  /** What was deleted elsewhere goes; a page of the list says nothing about older ones. */
  #dropMissing(lists) {
    lists.forEach((jobs, index) => {
      const ids = new Set(jobs.map(({ id }) => id));
      const oldest = jobs.length < PAGE ? -Infinity : Math.min(...jobs.map(({ created_at: at }) => at));
      for (const { kind, job } of [...this.#works.values()]) {
        const isLocal = job.id.startsWith("drawing-");
        if (kind === this.#kinds[index] && !isLocal && !ids.has(job.id) && job.created_at >= oldest)
          this.#remove(job.id);
      }
    });
  }

  #lookAgain(afterMs = null) {
    clearTimeout(this.#timer);
    const isBusy = this.#drawings.size > 0 || [...this.#works.values()].some(({ job }) => !isFinal(job));
    const wait = afterMs ?? (isBusy ? BUSY_MS : CALM_MS);
    this.#timer = setTimeout(() => {
      if (!document.hidden && this.#kinds.length) this.refresh();
    }, wait);
    this.#followSome();
  }

  // -- live -----------------------------------------------------------------------------------------------------------

  #followSome() {
    const works = [...this.#works.values()].filter(({ job }) => !isFinal(job) && !job.id.startsWith("drawing-"));
    const first = works.sort((one, other) => rank(one.job) - rank(other.job)).slice(0, MOST_FOLLOWED);
    for (const work of works) if (!first.includes(work)) work.following?.abort();
    for (const work of first) if (!work.following) this.#follow(work);
  }

  async #follow(work) {
    const following = new AbortController();
    work.following = following;
    try {
      const path = `${jobPath(work.kind, work.job.id)}/events`;
      for await (const { event, data } of this.#api.events(path, { signal: following.signal, isQuiet: true }))
        this.#hear(work, event, data);
    } catch {
      await new Promise((resolve) => {
        setTimeout(resolve, BUSY_MS);
      }); // the list goes on telling; then try again
    }
    work.following = null;
  }

  #hear(work, event, data) {
    if (event === "done") {
      this.#take(work.kind, data.id ? data : { ...work.job, ...data });
      return;
    }
    if (event === "preview") work.live.preview = `data:image/jpeg;base64,${data.b64_json}`;
    else Object.assign(work.live, data);
    if (data.status && !isFinal(data)) work.job.status = data.status;
    work.card.update(work.job, work.live);
  }

  #partial(drawing, data) {
    const id = data.id ?? null;
    if (id) this.#adopt(drawing, id);
    const work = this.#works.get(drawing.adopted ?? drawing.id);
    if (!work || !data.b64_json || !/partial/.test(data.type ?? "")) return;
    work.live.preview = `data:image/${data.output_format ?? "png"};base64,${data.b64_json}`;
    work.card.update(work.job, work.live);
  }

  /** The card of a drawing becomes that of its job. */
  #adopt(drawing, id) {
    if (drawing.adopted) return;
    drawing.adopted = id;
    const work = this.#works.get(drawing.id);
    if (!work) return;
    this.#works.delete(drawing.id);
    if (this.#works.has(id)) {
      work.card.element.remove();
      return;
    }
    work.job = { ...work.job, id };
    this.#works.set(id, work);
    this.#threads.rename(drawing.id, id);
  }

  // -- cards ----------------------------------------------------------------------------------------------------------

  #take(kind, job, { isNew = false } = {}) {
    const drawing = [...this.#drawings].find(
      (one) =>
        !one.adopted &&
        kind === "image" &&
        !job.id.startsWith("drawing-") &&
        one.prompt === (job.prompt ?? job.params?.prompt) &&
        job.created_at > one.began - ADOPT_S &&
        !this.#works.has(job.id),
    );
    if (drawing) this.#adopt(drawing, job.id);
    const known = this.#works.get(job.id);
    if (known) this.#change(known, job);
    else this.#add(kind, job, isNew);
    this.#showState();
  }

  #change(work, job) {
    const wasFinal = isFinal(work.job);
    work.job = { ...work.job, ...job };
    work.card.update(work.job, work.live);
    if (isFinal(work.job) && !wasFinal) {
      work.following?.abort();
      announce(`${ENDS[job.status]}: ${shortened(job.prompt ?? "", 60)}`);
    }
    this.#viewer.changed(work);
  }

  #add(kind, job, isNew) {
    const work = { kind, job, live: {}, following: null, card: null };
    work.card = new WorkCard(this.#api, {
      kind,
      isNew,
      onOpen: () => this.#viewer.open(work),
      onCancel: () => this.#cancel(work),
    });
    if (!isFinal(job)) this.#colour(work); // what is finished is on the loom no more
    work.card.update(job, work.live);
    this.#works.set(job.id, work);
    const older = [...this.#works.values()].filter((other) => other !== work && other.job.created_at <= job.created_at);
    older.sort((one, other) => other.job.created_at - one.job.created_at);
    byId("works").insertBefore(work.card.element, older[0]?.card.element ?? null);
  }

  #colour(work) {
    this.#threads.name(work.job.id, nameOf(work));
    work.card.colour = this.#threads.colourOf(work.job.id);
  }

  #remove(id) {
    const work = this.#works.get(id);
    if (!work) return;
    work.following?.abort();
    work.card.element.remove();
    this.#works.delete(id);
    this.#showState();
  }

  #showState() {
    show(byId("gallery-empty"), this.#isLoaded && this.#works.size === 0);
    byId("gallery-empty").textContent = this.#problem || "What you make appears here, and stays when you reload.";
    show(
      byId("gallery-more"),
      [...this.#cursors.values()].some(({ hasMore }) => hasMore),
    );
    const running = [...this.#works.values()].filter(({ job }) => !isFinal(job)).length;
    byId("gallery-count").textContent = running ? `${running} being made` : "";
  }

  // -- ending ---------------------------------------------------------------------------------------------------------

  async #cancel(work) {
    const drawing = [...this.#drawings].find(({ id, adopted }) => work.job.id === id || work.job.id === adopted);
    drawing?.abort.abort(); // whoever waits for an image and leaves, cancels it
    if (work.job.id.startsWith("drawing-")) return;
    try {
      this.#take(work.kind, await this.#api.json(`${jobPath(work.kind, work.job.id)}/cancel`, { method: "POST" }));
    } catch (error) {
      announce(error.message);
    }
    await this.refresh();
  }

  async #delete(work) {
    const name = shortened(work.job.prompt ?? "", 60);
    if (!(await confirmLoss("Delete this?", `“${name}” and its files are removed from the server.`))) return false;
    await this.#api.request(jobPath(work.kind, work.job.id), { method: "DELETE" });
    const next = work.card.element.nextElementSibling ?? work.card.element.previousElementSibling;
    this.#remove(work.job.id);
    (next?.querySelector("button") ?? byId("prompt")).focus();
    announce("Deleted");
    return true;
  }
}

function nameOf({ kind, job }) {
  const what = { video: "Film", image: "Image", audio: "Sound" }[kind];
  return `${what}: ${shortened(job.prompt ?? job.params?.prompt ?? "", 32)}`;
}

/** What is worked on comes first, then what waits, oldest first. */
function rank(job) {
  return (job.status === "in_progress" ? 0 : 1e12) + job.created_at;
}
