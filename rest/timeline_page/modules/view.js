/** A window onto time: which span of it is seen, and how it moves. Pure; times are milliseconds. */

const MIN_MS = 0.05;

export class View {
  constructor(start, end) {
    this.start = start;
    this.end = Math.max(end, start + MIN_MS);
  }

  get length() {
    return this.end - this.start;
  }

  /** Where a time is, in pixels of a strip this wide. */
  x(time, width) {
    return ((time - this.start) / this.length) * width;
  }

  /** Which time a pixel is. */
  time(x, width) {
    return this.start + (x / width) * this.length;
  }

  /** Nearer (factor < 1) or farther, with `at` where it was. */
  zoomed(factor, at) {
    const length = Math.max(this.length * factor, MIN_MS);
    const part = (at - this.start) / this.length;
    return new View(at - part * length, at + (1 - part) * length);
  }

  moved(ms) {
    return new View(this.start + ms, this.end + ms);
  }
}

/** Round distances for lines of a grid: 1, 2 or 5 times a power of ten, about `count` of them in a length. */
export function gridStep(length, count) {
  const rough = length / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((one) => one * power).find((step) => step >= rough);
}

export function inWords(ms) {
  if (Math.abs(ms) >= 10000) return `${(ms / 1000).toFixed(1)} s`;
  if (Math.abs(ms) >= 1000) return `${(ms / 1000).toFixed(2)} s`;
  return `${ms.toFixed(Math.abs(ms) < 10 ? 2 : 0)} ms`;
}
