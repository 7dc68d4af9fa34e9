import assert from "node:assert/strict";
import { test } from "node:test";

import { barsOfSpans, barsOfSteps, Colours, extent, merged } from "../../../rest/timeline_page/modules/bars.js";
import { gridStep, inWords, View } from "../../../rest/timeline_page/modules/view.js";

const step = (number, requests, start = number, lane = "device") => (
  { number, requests, lane, start_s: start, ms: 500, workload: "language", kind: "decode" }
);

test("each lane is a row and each request a colour, which those on its behalf share", () => {
  const { rows, bars, lanes } = barsOfSteps(
    [step(0, ["a"]), step(1, ["b"]), step(2, ["a/0"], 2, "other")], new Colours(),
  );
  assert.deepEqual(rows, ["device", "other", "a", "b"]);
  const ofLanes = bars.filter((bar) => bar.row < lanes);
  assert.deepEqual(ofLanes.map((bar) => [bar.row, bar.colour]), [[0, 0], [0, 1], [1, 0]]);
  assert.deepEqual([ofLanes[1].start, ofLanes[1].end], [1000, 1500]);
});

test("a step that requests share stands in the row of each, and only the last requests have one", () => {
  const { rows, bars, lanes } = barsOfSteps([step(0, ["a", "b"])], new Colours());
  assert.deepEqual(bars.filter((bar) => bar.row >= lanes).map((bar) => [rows[bar.row], bar.colour]), [["a", 0], ["b", 1]]);
  const many = barsOfSteps([...Array(20).keys()].map((number) => step(number, [`r${number}`])), new Colours());
  assert.deepEqual(many.rows.slice(1), [...Array(12).keys()].map((number) => `r${number + 8}`));
});

test("the largest trace that is kept is laid out in no time", () => {
  const spans = [...Array(20000).keys()].map((number) => ({
    span_id: `s${number}`, parent_id: number ? "s0" : null, name: "segment", start_ns: number, end_ns: number + 1,
    attributes: {}, events: [],
  }));
  const began = performance.now();
  const { rows, bars } = barsOfSpans(spans, new Colours());
  assert.equal(rows.length, 20000);
  assert.ok(performance.now() - began < 2000);
  const many = [...Array(15).keys()].flatMap(() => bars); // more than a call takes arguments
  assert.deepEqual(extent(many), [0, 20000 / 1e6]);
});

test("new steps go behind the known ones, old ones go, and another engine begins anew", () => {
  const known = merged([], [step(0, []), step(1, [])], 10000);
  assert.deepEqual(merged(known, [step(1, []), step(2, [])], 10000).map((one) => one.number), [0, 1, 2]);
  assert.deepEqual(merged(known, [step(2, [])], 1000).map((one) => one.number), [1, 2]);
  assert.deepEqual(merged(known, [step(0, [], 50)], 10000).map((one) => one.start_s), [50]);
});

test("spans are rows under their parents, in the order of time; an orphan is a root", () => {
  const span = (span_id, parent_id, start_ns, more = {}) => (
    { span_id, parent_id, name: span_id, start_ns, end_ns: start_ns + 2e6, attributes: {}, events: [], ...more }
  );
  const { rows, bars } = barsOfSpans([
    span("root", "caller", 1e6), span("late", "root", 5e6), span("early", "root", 2e6),
    span("inner", "early", 2e6, { error: "interrupted", events: [["token", 3e6, {}]] }),
  ], new Colours());
  assert.deepEqual(rows, ["root", "  early", "    inner", "  late"]);
  assert.deepEqual(bars.map((bar) => bar.start), [0, 1, 1, 4]);
  assert.deepEqual([bars[2].isError, bars[2].marks], [true, [2]]);
});

test("what is under the pointer stays there while it is zoomed", () => {
  const view = new View(100, 200).zoomed(0.5, 125);
  assert.deepEqual([view.start, view.end], [112.5, 162.5]);
  assert.equal(view.x(125, 1000), 250);
  assert.equal(view.time(250, 1000), 125);
  assert.deepEqual([view.moved(10).start, view.moved(10).end], [122.5, 172.5]);
  assert.ok(new View(0, 1).zoomed(1e-9, 0).length >= 0.05);
});

test("the grid's lines are at round times", () => {
  assert.equal(gridStep(1000, 10), 100);
  assert.equal(gridStep(1300, 10), 200);
  assert.equal(gridStep(0.9, 10), 0.1);
  assert.equal(inWords(12345), "12.3 s");
  assert.equal(inWords(3.14159), "3.14 ms");
  assert.equal(inWords(-800), "-800 ms");
});
