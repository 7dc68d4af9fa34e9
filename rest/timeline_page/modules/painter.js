/** Draws bars in rows on a canvas, and tells which bar is under the pointer. */

import { NUM_COLOURS } from "./bars.js";
import { gridStep, inWords } from "./view.js";

const NARROW = 24;
const WIDE = 64;
const MANY = 4;
const HEAD = 22;
const MIN_LABEL = 34;

export class Painter {
  #canvas;
  #names = 0;
  #row = NARROW;

  constructor(canvas) {
    this.#canvas = canvas;
  }

  /** Pixels of the strip, beside the rows' names. */
  get width() {
    return Math.max(this.#canvas.clientWidth - this.#names, 50);
  }

  /** Where the strip begins. */
  get left() {
    return this.#names;
  }

  paint({ rows, bars, view, zero }) {
    const canvas = this.#canvas;
    const scale = devicePixelRatio || 1;
    const style = getComputedStyle(document.documentElement);
    const context = canvas.getContext("2d");
    context.font = "12px system-ui, sans-serif";
    this.#names = Math.min(220, 16 + Math.max(40, ...rows.map((row) => context.measureText(row).width)));
    this.#row = rows.length > MANY ? NARROW : WIDE;
    const height = HEAD + Math.max(rows.length, 1) * this.#row + 6;
    canvas.height = height * scale;
    canvas.width = canvas.clientWidth * scale;
    canvas.style.setProperty("height", `${height}px`);
    context.scale(scale, scale);
    context.font = "12px system-ui, sans-serif";
    const paint = {
      ink: this.#resolve(style, "--ink"), soft: this.#resolve(style, "--soft"), line: this.#resolve(style, "--line"),
      alarm: this.#resolve(style, "--alarm"), ground: this.#resolve(style, "--raised"),
      threads: [...Array(NUM_COLOURS).keys()].map((number) => this.#resolve(style, `--thread-${number}`)),
    };
    this.#grid(context, view, zero, height, paint);
    context.fillStyle = paint.ink;
    rows.forEach((name, row) => context.fillText(name, 8, HEAD + (row + 0.5) * this.#row + 4, this.#names - 12));
    context.save();
    context.beginPath();
    context.rect(this.#names, HEAD, this.width, height);
    context.clip();
    for (const bar of bars) this.#bar(context, bar, view, paint);
    context.restore();
  }

  /** The bar at a place of the canvas, or undefined. */
  find({ bars, view }, x, y) {
    const row = Math.floor((y - HEAD) / this.#row);
    const time = view.time(x - this.#names, this.width);
    const slack = (view.length / this.width) * 2;
    return bars.findLast((bar) => bar.row === row && bar.start - slack <= time && time <= bar.end + slack);
  }

  #grid(context, view, zero, height, paint) {
    const step = gridStep(view.length, Math.max(this.width / 110, 1));
    context.strokeStyle = paint.line;
    context.fillStyle = paint.soft;
    for (let at = Math.ceil((view.start - zero) / step) * step + zero; at <= view.end; at += step) {
      const x = this.#names + view.x(at, this.width);
      context.beginPath();
      context.moveTo(x, HEAD - 6);
      context.lineTo(x, height);
      context.stroke();
      context.fillText(inWords(at - zero), x + 3, 14);
    }
  }

  #bar(context, bar, view, paint) {
    const left = this.#names + view.x(bar.start, this.width);
    const width = Math.max(view.x(bar.end, this.width) - view.x(bar.start, this.width), 1);
    if (left + width < this.#names || left > this.#names + this.width) return;
    const top = HEAD + bar.row * this.#row + 3;
    context.fillStyle = paint.threads[bar.colour];
    context.fillRect(left, top, width, this.#row - 6);
    if (bar.isError) {
      context.fillStyle = paint.alarm;
      context.fillRect(left, top + this.#row - 9, width, 3);
    }
    context.fillStyle = paint.ground;
    for (const time of bar.marks ?? []) context.fillRect(this.#names + view.x(time, this.width), top, 1, 5);
    if (width > MIN_LABEL && width > context.measureText(bar.label).width * 0.7) {
      const shown = Math.max(left, this.#names);
      context.fillText(bar.label, shown + 4, top + this.#row / 2 + 1, Math.max(width - (shown - left) - 8, 1));
    }
  }

  /** A colour of the theme as a canvas takes it: `light-dark()` is resolved by the browser. */
  #resolve(style, name) {
    this.#canvas.style.setProperty("color", `var(${name})`);
    return getComputedStyle(this.#canvas).color;
  }
}
