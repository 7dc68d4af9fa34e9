import assert from "node:assert/strict";
import { test } from "node:test";

import { Stitches } from "../../../rest/page/modules/stitches.js";

const step = (workload, from, to, ...requests) => ({
  workload,
  kind: "k",
  requests,
  class: 0,
  start_s: from,
  end_s: to,
});

test("steps told twice are drawn once, each in its row", () => {
  const stitches = new Stitches();
  const steps = [step("language", 1, 1.5, "a"), step("diffusion", 1.5, 2, "b")];
  stitches.add({ now_s: 2, steps }, 102);
  stitches.add({ now_s: 2.5, steps }, 102.5);
  assert.deepEqual(
    stitches.bars(100, 103).map(({ row, from, to }) => [row, from, to]),
    [
      [0, 101, 101.5],
      [1, 101.5, 102],
    ],
  );
});

test("a slow answer does not shift what was drawn", () => {
  const stitches = new Stitches();
  stitches.add({ now_s: 2, steps: [step("language", 1, 2, "a")] }, 102);
  stitches.add({ now_s: 3, steps: [] }, 103.7);
  assert.equal(stitches.bars(0, 200)[0].from, 101);
});

test("an engine that was started again has another clock", () => {
  const stitches = new Stitches();
  stitches.add({ now_s: 900, steps: [] }, 1000);
  stitches.add({ now_s: 1, steps: [step("language", 0.5, 1, "a")] }, 1010);
  assert.equal(stitches.bars(1000, 1011).at(-1).from, 1009.5);
});

test("shares are parts of the time, and a shared step is shared", () => {
  const stitches = new Stitches();
  stitches.add({ now_s: 10, steps: [step("language", 8, 9, "a", "b"), step("diffusion", 9, 10, "c")] }, 10);
  assert.deepEqual(
    stitches.shares(8, 10).map(({ id, row, share }) => [id, row, share]),
    [
      ["c", 1, 0.5],
      ["a", 0, 0.25],
      ["b", 0, 0.25],
    ],
  );
});

test("what a film has the language model do is drawn in its colour, among the words", () => {
  const stitches = new Stitches();
  stitches.add(
    {
      now_s: 2,
      steps: [{ number: 3, workload: "language", kind: "prefill", requests: ["video_1/0"], start_s: 1, ms: 500 }],
    },
    2,
  );
  assert.deepEqual(stitches.bars(0, 3), [{ row: 0, from: 1, to: 1.5, requests: ["video_1"] }]);
});

test("what is old is forgotten", () => {
  const stitches = new Stitches(5);
  stitches.add({ now_s: 1, steps: [step("language", 0, 1, "a")] }, 1);
  stitches.add({ now_s: 8, steps: [] }, 8);
  assert.deepEqual(stitches.bars(0, 10), []);
});
