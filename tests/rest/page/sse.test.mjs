import assert from "node:assert/strict";
import { test } from "node:test";

import { EventParser, readEvents } from "../../../rest/page/modules/sse.js";

const STREAM = ': hello\nevent: progress\ndata: {"a":1}\n\ndata: one\ndata: two\r\n\r\nid: 7\ndata:x\n\n';
const EVENTS = [
  { event: "progress", data: '{"a":1}' },
  { event: "message", data: "one\ntwo" },
  { event: "message", data: "x" },
];

test("events are the same however the text is cut", () => {
  for (let size = 1; size <= STREAM.length; size += 1) {
    const parser = new EventParser();
    const events = [];
    for (let at = 0; at < STREAM.length; at += size) events.push(...parser.push(STREAM.slice(at, at + size)));
    assert.deepEqual(events, EVENTS, `pieces of ${size}`);
  }
});

test("an event without its end is not told", () => {
  assert.deepEqual(new EventParser().push("data: half\n"), []);
});

test("characters cut in the middle are whole again", async () => {
  const bytes = new TextEncoder().encode("data: für 🎬\n\n");
  const body = new ReadableStream({
    start(controller) {
      for (const byte of bytes) controller.enqueue(new Uint8Array([byte]));
      controller.close();
    },
  });
  const events = [];
  for await (const event of readEvents({ body })) events.push(event.data);
  assert.deepEqual(events, ["für 🎬"]);
});

test("who stops reading closes the stream", async () => {
  let isCancelled = false;
  const body = new ReadableStream({
    start: (controller) => controller.enqueue(new TextEncoder().encode("data: 1\n\ndata: 2\n\n")),
    cancel: () => {
      isCancelled = true;
    },
  });
  for await (const event of readEvents({ body })) {
    assert.equal(event.data, "1");
    break;
  }
  await new Promise((resolve) => {
    setTimeout(resolve, 10);
  });
  assert.ok(isCancelled);
});
