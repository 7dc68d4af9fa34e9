/** What the device did, as bars on a strip of time. Pure: times go in, bars and sums come out. */

const LANGUAGE = "language";

/** What one request has another workload do (`video_1/0`) is its own work. */
const rootOf = (id) => id.split("/")[0];

const endOf = (step) => step.end_s ?? step.start_s + step.ms / 1000;

/** The last steps of the device, by this machine's clock. */
export class Stitches {
  #seen = new Set();
  #offset = null;
  #steps = [];

  /** @param keptS how far back steps are remembered */
  constructor(keptS = 14) {
    this.keptS = keptS;
  }

  /**
   * Take an answer of `/v1/activity`. The engine's clock and ours differ by about what the fastest answer shows.
   * @param now seconds of our clock at which the answer came
   */
  add(activity, now) {
    const offset = now - activity.now_s;
    this.#offset =
      this.#offset === null || Math.abs(offset - this.#offset) > 2 ? offset : Math.min(this.#offset, offset);
    for (const step of activity.steps ?? []) {
      const key = `${step.workload}:${step.kind}:${step.start_s}`;
      if (this.#seen.has(key)) continue;
      this.#seen.add(key);
      this.#steps.push({
        key,
        workload: step.workload,
        from: step.start_s,
        to: endOf(step),
        requests: step.requests.map(rootOf),
      });
    }
    this.#forget(activity.now_s - this.keptS);
  }

  /** Bars between two times: `{row, from, to, requests}`; row 0 is words, row 1 pictures. */
  bars(since, until) {
    if (this.#offset === null) return [];
    const shifted = this.#steps.map((step) => ({
      row: step.workload === LANGUAGE ? 0 : 1,
      from: step.from + this.#offset,
      to: step.to + this.#offset,
      requests: step.requests,
    }));
    return shifted.filter((bar) => bar.to > since && bar.from < until);
  }

  /** Each request's part of the time since, largest first: `{id, row, share}`; a shared step is shared evenly. */
  shares(since, until) {
    const found = new Map();
    for (const bar of this.bars(since, until)) {
      const seconds = (Math.min(bar.to, until) - Math.max(bar.from, since)) / Math.max(bar.requests.length, 1);
      for (const id of bar.requests) {
        const request = found.get(id) ?? { id, row: bar.row, share: 0 };
        request.share += seconds / (until - since);
        found.set(id, request);
      }
    }
    return [...found.values()].sort((one, other) => other.share - one.share);
  }

  #forget(before) {
    const isOld = (step) => step.to < before;
    for (const step of this.#steps.filter(isOld)) this.#seen.delete(step.key);
    this.#steps = this.#steps.filter((step) => !isOld(step));
  }
}
