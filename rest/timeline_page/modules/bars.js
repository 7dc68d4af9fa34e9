/** From what the server tells to bars: { row, start, end, label, colour, details }. Pure; times are milliseconds. */

export const NUM_COLOURS = 7;
const MAX_REQUESTS = 12;

/** Gives every request a colour, the same for as long as the page is open. */
export class Colours {
  #known = new Map();

  of(id) {
    const root = rootOf(id); // a request on behalf of another has its colour
    if (!this.#known.has(root)) this.#known.set(root, this.#known.size % NUM_COLOURS);
    return this.#known.get(root);
  }

  entries() {
    return [...this.#known.entries()];
  }
}

/** Steps of the device: a row for each lane, and below them one for each of the requests that ran last. */
export function barsOfSteps(steps, colours) {
  const lanes = [...new Set(steps.map((step) => step.lane))];
  const requests = lastRequests(steps);
  const bars = [];
  for (const step of steps) {
    const roots = [...new Set(step.requests.map(rootOf))];
    const bar = {
      start: step.start_s * 1000,
      end: step.start_s * 1000 + step.ms,
      label: step.kind,
      isError: false,
      details: [
        `${step.workload} ${step.kind}, step ${step.number}, ${step.ms.toFixed(3)} ms`,
        step.requests.join(", ") || "nobody",
      ],
    };
    bars.push({ ...bar, row: lanes.indexOf(step.lane), colour: colours.of(roots[0] ?? ""), trace: roots[0] });
    for (const root of roots) {
      const row = requests.indexOf(root);
      if (row >= 0) bars.push({ ...bar, row: lanes.length + row, colour: colours.of(root), trace: root });
    }
  }
  return { rows: [...lanes, ...requests.map(shortened)], bars, lanes: lanes.length };
}

/** The request that a request is on behalf of, or itself. */
function rootOf(id) {
  return id.split("/")[0];
}

/** Those with the newest steps, in the order in which they began. */
function lastRequests(steps) {
  const found = new Set();
  for (let at = steps.length - 1; at >= 0 && found.size < MAX_REQUESTS; at--) {
    for (const id of steps[at].requests) found.add(rootOf(id));
  }
  const first = new Map();
  for (const step of steps) {
    for (const id of step.requests) if (!first.has(rootOf(id))) first.set(rootOf(id), step.number);
  }
  return [...found].sort((a, b) => first.get(a) - first.get(b));
}

function shortened(id) {
  return id.length > 20 ? `${id.slice(0, 15)}…${id.slice(-4)}` : id;
}

/** Spans of a trace: a row for each, children under their parents in the order of time. */
export function barsOfSpans(spans, colours) {
  const known = new Set(spans.map((span) => span.span_id));
  const children = new Map();
  for (const span of spans) {
    const parent = known.has(span.parent_id) ? span.parent_id : "";
    if (!children.has(parent)) children.set(parent, []);
    children.get(parent).push(span);
  }
  const origin = spans.reduce((first, span) => Math.min(first, span.start_ns), Infinity);
  const rows = [];
  const bars = [];
  const put = (span, depth, owner) => {
    const request = span.attributes["braid.request.id"] ?? owner;
    const start = (span.start_ns - origin) / 1e6;
    const end = (span.end_ns - origin) / 1e6;
    const said = Object.entries(span.attributes).map(([name, value]) => `${name}=${value}`);
    bars.push({
      row: rows.length,
      start,
      end,
      label: `${span.name} ${(end - start).toFixed(1)} ms`,
      colour: colours.of(request),
      isError: Boolean(span.error),
      marks: span.events.map(([, time]) => (time - origin) / 1e6),
      details: [`${span.name}, ${(end - start).toFixed(3)} ms${span.error ? `, ${span.error}` : ""}`, said.join("  ")],
    });
    rows.push(`${"  ".repeat(depth)}${span.name}`);
    const within = (children.get(span.span_id) ?? []).sort((a, b) => a.start_ns - b.start_ns || a.end_ns - b.end_ns);
    for (const child of within) put(child, depth + 1, request);
  };
  for (const root of children.get("") ?? []) put(root, 0, "");
  return { rows, bars };
}

/** From the first start to the last end; there may be more bars than a call takes arguments. */
export function extent(bars) {
  return bars.reduce(([start, end], bar) => [Math.min(start, bar.start), Math.max(end, bar.end)], [Infinity, -Infinity]);
}

/** New steps behind those that are known; what is older than `keepMs` goes. */
export function merged(known, fresh, keepMs) {
  const last = known.at(-1)?.number ?? -1;
  const isRestarted = fresh.length > 0 && fresh.at(-1).number < last; // another engine counts from 0 again
  const all = isRestarted ? fresh : [...known, ...fresh.filter((step) => step.number > last)];
  const since = (all.at(-1)?.start_s ?? 0) * 1000 - keepMs;
  return all.filter((step) => step.start_s * 1000 >= since);
}
