/** The strip that shows what the device does right now: words above, pictures below, each request in its colour. */

import { byId, h } from "./dom.js";
import { Stitches } from "./stitches.js";

const SPAN_S = 9;
const DELAY_S = 1.3; // drawn a little late, so that bars slide in instead of jumping
const FRAME_MS = 1000 / 15; // bars move a few pixels a second: more frames cost much and show nothing
const POLL_MS = 1000;
const IDLE_POLL_MS = 3000;
const RECENT_S = 2.5;
const NUM_COLOURS = 7;

/** Polls `/v1/activity` while somebody looks, and draws it. */
export class Loom {
  #api;
  #canvas = byId("loom-canvas");
  #colours = [];
  #idleAnswers = 0;
  #isDrawing = false;
  #isReady = false;
  #stitches = new Stitches();
  #threads;
  #timer = 0;

  constructor(api, threads) {
    this.#api = api;
    this.#threads = threads;
    document.addEventListener("visibilitychange", () => this.#wake());
    new ResizeObserver(() => this.#draw()).observe(this.#canvas);
  }

  /** Whether there is an engine to ask. */
  set isReady(isReady) {
    this.#isReady = isReady;
    this.#wake();
  }

  /** The colours of the theme changed. */
  repaint() {
    this.#colours = [];
    this.#draw();
  }

  /** Something began: look again at once. */
  stir() {
    this.#idleAnswers = 0;
    this.#wake();
  }

  #wake() {
    clearTimeout(this.#timer);
    if (this.#isReady && !document.hidden) this.#poll();
  }

  async #poll() {
    clearTimeout(this.#timer);
    try {
      const activity = await this.#api.json("v1/activity?seconds=3", { isQuiet: true });
      this.#stitches.add(activity, seconds());
      this.#idleAnswers = activity.steps?.length ? 0 : this.#idleAnswers + 1;
    } catch (error) {
      if (error.status === 404) return; // a server without it: the strip stays at rest
      this.#idleAnswers += 1;
    }
    clearTimeout(this.#timer);
    this.#tell();
    this.#animate();
    this.#timer = setTimeout(() => this.#wake(), this.#idleAnswers > 4 ? IDLE_POLL_MS : POLL_MS);
  }

  #tell() {
    const now = seconds();
    const shares = this.#stitches.shares(now - RECENT_S, now).filter(({ share }) => share > 0.002);
    const items = shares.slice(0, 3).map(({ id, row, share }) => {
      const name = this.#threads.nameOf(id) ?? (row ? "Another picture or film" : "Another chat");
      return h(
        "li",
        { class: `thread-${this.#threads.colourOf(id)}` },
        h("span", {}, name),
        h("b", {}, `${Math.max(1, Math.round(share * 100))} %`),
      );
    });
    byId("loom-threads").replaceChildren(...items);
    byId("loom-summary").textContent = summary(shares);
  }

  #animate() {
    const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (this.#isDrawing) return;
    if (isStill) {
      this.#draw();
      return;
    }
    this.#isDrawing = true;
    const frame = () => {
      this.#isDrawing = this.#draw() && !document.hidden && this.#isReady;
      if (this.#isDrawing) setTimeout(() => requestAnimationFrame(frame), FRAME_MS);
    };
    requestAnimationFrame(frame);
  }

  /** Draws the strip as it is now; gives whether there is anything on it that moves, or will be soon. */
  #draw() {
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    const ratio = devicePixelRatio || 1;
    if (!width) return false;
    if (this.#canvas.width !== Math.round(width * ratio)) this.#canvas.width = Math.round(width * ratio);
    if (this.#canvas.height !== Math.round(height * ratio)) this.#canvas.height = Math.round(height * ratio);
    const pen = this.#canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    if (!this.#colours.length) this.#colours = readColours();
    const until = seconds() - DELAY_S;
    const bars = this.#stitches.bars(until - SPAN_S, until);
    for (const row of [0, 1]) drawWarp(pen, rowMiddle(row, height), width, this.#colours.at(-1));
    for (const bar of bars) this.#drawBar(pen, bar, { until, width, height });
    pen.globalAlpha = 1;
    return this.#stitches.bars(until - SPAN_S, seconds()).length > 0;
  }

  #drawBar(pen, bar, { until, width, height }) {
    const x = (time) => width * (1 - (until - time) / SPAN_S);
    const from = x(bar.from);
    const to = Math.max(x(Math.min(bar.to, until)) - 0.75, from + 1.25);
    const thickness = height * 0.3;
    const each = thickness / Math.max(bar.requests.length, 1);
    const top = rowMiddle(bar.row, height) - thickness / 2;
    pen.globalAlpha = Math.min(1, Math.max(0.1, (from / width) * 2.5));
    bar.requests.forEach((id, index) => {
      pen.fillStyle = this.#colours[this.#threads.colourOf(id)];
      pen.beginPath();
      pen.roundRect(
        from,
        top + index * each,
        to - from,
        Math.max(each - (index ? 0.5 : 0), 1),
        Math.min(2, (to - from) / 2),
      );
      pen.fill();
    });
  }
}

function rowMiddle(row, height) {
  return height * (row ? 0.75 : 0.25);
}

function drawWarp(pen, y, width, colour) {
  pen.globalAlpha = 1;
  pen.strokeStyle = colour;
  pen.lineWidth = 1;
  pen.beginPath();
  pen.moveTo(0, y);
  pen.lineTo(width, y);
  pen.stroke();
}

/** The theme's thread colours and the colour of lines, as a canvas takes them. */
function readColours() {
  const names = [...Array(NUM_COLOURS).keys()].map((number) => `--thread-${number}`);
  return [...names, "--line-strong"].map((name) => {
    const probe = h("i", {});
    probe.style.color = `var(${name})`;
    document.body.append(probe);
    const { color } = getComputedStyle(probe);
    probe.remove();
    return color;
  });
}

function seconds() {
  return performance.now() / 1000;
}

function summary(shares) {
  if (!shares.length) return "The device is at rest.";
  const busy = Math.min(100, Math.round(100 * shares.reduce((sum, { share }) => sum + share, 0)));
  const rows = new Set(shares.map(({ row }) => row));
  const what = rows.size > 1 ? "words and pictures, side by side" : rows.has(0) ? "words" : "pictures";
  return `Working on ${what} · ${Math.max(busy, 1)} % busy`;
}
