import assert from "node:assert/strict";
import { test } from "node:test";

import { errorOf } from "../../../rest/page/modules/api.js";
import { Threads } from "../../../rest/page/modules/threads.js";
import { ago, clock, remaining, shortened, stageName } from "../../../rest/page/modules/words.js";

test("times are said as people say them", () => {
  assert.equal(clock(7), "0:07");
  assert.equal(clock(3725), "1:02:05");
  assert.equal(remaining(0.4), "nearly done");
  assert.equal(remaining(42.2), "about 42 s left");
  assert.equal(remaining(600), "about 10 min left");
  assert.equal(remaining(null), "");
  assert.equal(ago(100, 130), "just now");
  assert.equal(ago(0, 7300), "2 h ago");
});

test("a text is cut at a word, and only where it must be", () => {
  assert.equal(shortened("one two", 10), "one two");
  assert.equal(shortened("one two three four", 12), "one two…");
});

test("a stage that nobody named is shown as the server calls it", () => {
  assert.equal(stageName("decode_video"), "Developing frames");
  assert.equal(stageName("new_stage"), "New stage");
});

test("an error says what the server said, even where that was nothing", () => {
  const said = errorOf(429, { error: { message: "too many", code: "rate", param: "n" } }, "3");
  assert.deepEqual([said.message, said.code, said.param, said.retryAfterS], ["too many", "rate", "n", 3]);
  assert.match(errorOf(502, null).message, /502/);
});

test("a request keeps its colour, and neighbours differ", () => {
  const threads = new Threads();
  const colours = ["a", "b", "c"].map((id) => threads.colourOf(id));
  assert.equal(new Set(colours).size, 3);
  assert.equal(threads.colourOf("a"), colours[0]);
  threads.rename("b", "d");
  assert.equal(threads.colourOf("d"), colours[1]);
});
