/** The page: `/timeline` follows the device, `/trace/{id}` shows one request. */

import { getJson, saveJson } from "./api.js";
import { barsOfSpans, barsOfSteps, Colours, extent, merged } from "./bars.js";
import { Painter } from "./painter.js";
import { inWords, View } from "./view.js";

const KEEP_MS = 300000;
const SHOWN_MS = 10000;
const EACH_MS = 1000;

const find = (id) => document.getElementById(id);
const canvas = find("canvas");
const painter = new Painter(canvas);
const colours = new Colours();
const shown = { rows: [], bars: [], view: new View(0, 1000), zero: 0 };
const traceId = location.pathname.startsWith("/trace/") ? decoded(location.pathname.slice(7)) : "";
let follows = !traceId;
let steps = [];

/** Of an address that somebody may have written by hand. */
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

const paint = () => painter.paint(shown);

function fit() {
  if (!shown.bars.length) return;
  const [start, end] = extent(shown.bars);
  shown.view = new View(start, end + (end - start) * 0.02);
  paint();
}

function setFollows(value) {
  follows = value && !traceId;
  find("pause").setAttribute("aria-pressed", String(!follows));
  find("pause").textContent = follows ? "Pause" : "Follow";
}

function legend() {
  const items = colours.entries().filter(([id]) => id).slice(-24).map(([id, colour]) => {
    const item = document.createElement("li");
    const mark = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    mark.setAttribute("viewBox", "0 0 10 10");
    mark.setAttribute("class", `thread-${colour}`);
    const square = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    square.setAttribute("width", "10");
    square.setAttribute("height", "10");
    mark.append(square);
    const link = document.createElement("a");
    link.href = `/trace/${encodeURIComponent(id)}`;
    link.textContent = id;
    item.append(mark, link);
    return item;
  });
  find("legend").replaceChildren(...items);
}

function describe(bar) {
  const lines = bar.details.map((text, number) => {
    const line = document.createElement("div");
    line.textContent = text;
    if (bar.isError && number === 0) line.className = "error";
    return line;
  });
  find("details").replaceChildren(...lines);
}

/** Of the time that was just now, how much the lanes were used. */
function busyPercent() {
  const ran = shown.bars.filter((bar) => bar.row < shown.lanes && bar.end > shown.zero - SHOWN_MS);
  const busy = ran.reduce((sum, bar) => sum + bar.end - bar.start, 0);
  return Math.min(100, Math.round((100 * busy) / SHOWN_MS / Math.max(shown.lanes, 1)));
}

async function followDevice() {
  try {
    const seconds = steps.length ? 4 : 300;
    const told = await getJson(`/v1/timeline?seconds=${seconds}`);
    steps = merged(steps, told.steps, KEEP_MS);
    Object.assign(shown, barsOfSteps(steps, colours));
    shown.zero = told.now_s * 1000;
    if (follows) shown.view = new View(shown.zero - SHOWN_MS, shown.zero);
    find("status").textContent = `${steps.length} steps; busy ${busyPercent()} % of the last ${inWords(SHOWN_MS)}`;
    legend();
    paint();
  } catch (error) {
    find("status").textContent = error.message;
  }
  setTimeout(followDevice, EACH_MS);
}

async function listTraces() {
  const told = await getJson("/v1/traces?limit=20").catch(() => ({ data: [] }));
  find("recent").hidden = !told.data.length;
  find("traces").replaceChildren(...told.data.map((trace) => {
    const item = document.createElement("li");
    const link = document.createElement("a");
    link.href = `/trace/${trace.trace_id}`;
    const took = inWords((trace.end_ns - trace.start_ns) / 1e6);
    link.textContent = `${trace.name} ${took}${trace.error ? ` (${trace.error})` : ""}${trace.is_under_way ? ", under way" : ""}`;
    item.append(link);
    return item;
  }));
}

async function showTrace() {
  try {
    const told = await getJson(`/v1/traces/${encodeURIComponent(traceId)}`);
    Object.assign(shown, barsOfSpans(told.spans, colours));
    find("title").textContent = `trace ${told.trace_id}`;
    find("status").textContent = `${told.spans.length} spans`;
    legend();
    fit();
  } catch (error) {
    find("status").textContent = error.message;
  }
}

function change(view) {
  setFollows(false);
  shown.view = view;
  paint();
}

canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  const at = shown.view.time(event.offsetX - painter.left, painter.width);
  change(shown.view.zoomed(event.deltaY > 0 ? 1.25 : 0.8, at));
}, { passive: false });

let dragged = false;
canvas.addEventListener("pointermove", (event) => {
  if (event.buttons) {
    dragged = dragged || Math.abs(event.movementX) > 1;
    change(shown.view.moved((-event.movementX / painter.width) * shown.view.length));
    return;
  }
  const bar = painter.find(shown, event.offsetX, event.offsetY);
  if (bar) describe(bar);
});
canvas.addEventListener("pointerdown", () => { dragged = false; });
canvas.addEventListener("click", (event) => {
  const bar = painter.find(shown, event.offsetX, event.offsetY);
  if (bar?.trace && !dragged) location.assign(`/trace/${encodeURIComponent(bar.trace)}`);
});
canvas.addEventListener("keydown", (event) => {
  const middle = (shown.view.start + shown.view.end) / 2;
  const view = {
    "+": () => shown.view.zoomed(0.8, middle),
    "-": () => shown.view.zoomed(1.25, middle),
    ArrowLeft: () => shown.view.moved(-shown.view.length / 10),
    ArrowRight: () => shown.view.moved(shown.view.length / 10),
  }[event.key];
  if (!view) return;
  event.preventDefault();
  change(view());
});
find("pause").addEventListener("click", () => setFollows(!follows));
find("pause").hidden = Boolean(traceId);
find("fit").addEventListener("click", () => { setFollows(false); fit(); });
find("export").href = traceId ? `/v1/traces/${encodeURIComponent(traceId)}?format=chrome` : "/v1/timeline?seconds=300&format=chrome";
find("export").addEventListener("click", (event) => {
  event.preventDefault();
  saveJson(find("export").getAttribute("href"), traceId ? `trace-${traceId}.json` : "timeline.json")
    .catch((error) => { find("status").textContent = error.message; });
});
addEventListener("resize", paint);

if (traceId) showTrace();
else {
  followDevice();
  listTraces();
  setInterval(listTraces, 5 * EACH_MS);
}
