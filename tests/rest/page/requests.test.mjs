import assert from "node:assert/strict";
import { test } from "node:test";

import { contentPath, fieldsOf, formOf, jobPath, multipart } from "../../../rest/page/modules/requests.js";

test("what is empty is left to the server", () => {
  const form = { prompt: " a fox ", model: "m", pipeline: "", width: null, seed: null, negative_prompt: "", loras: [] };
  assert.deepEqual(fieldsOf("video", form), { prompt: "a fox", model: "m" });
});

test("a zero is a value, and a switch that is off too", () => {
  const form = { prompt: "a", seed: 0, guidance_video: 0, generate_audio: false };
  assert.deepEqual(fieldsOf("video", form), {
    prompt: "a",
    seed: 0,
    guidance: { video: { guidance_scale: 0 } },
    generate_audio: false,
  });
});

test("an image has no length and no sound, and a sound no size", () => {
  const form = { prompt: "a", width: 64, height: 32, num_frames: 9, frame_rate: 24, generate_audio: true };
  assert.deepEqual(fieldsOf("image", form), { prompt: "a", width: 64, height: 32 });
  assert.deepEqual(fieldsOf("audio", form), { prompt: "a", num_frames: 9, frame_rate: 24 });
});

test("the settings of a work come back as they were sent", () => {
  const form = {
    prompt: "a",
    pipeline: "two_stage",
    width: 64,
    height: 32,
    num_frames: 9,
    frame_rate: 24,
    seed: 5,
    num_inference_steps: 3,
    negative_prompt: "b",
    guidance_video: 2,
    guidance_audio: 7,
    generate_audio: true,
    loras: [{ name: "x", strength: 0.5 }],
  };
  assert.deepEqual(formOf({ params: fieldsOf("video", form) }), form);
  assert.deepEqual(formOf({ prompt: "p" }).loras, []);
});

test("lists and objects travel as JSON beside a file", () => {
  const file = new File(["x"], "first.png", { type: "image/png" });
  const form = multipart(
    { prompt: "a", guidance: { video: { guidance_scale: 3 } }, seed: 1 },
    { input_reference: file },
  );
  assert.equal(form.get("guidance"), '{"video":{"guidance_scale":3}}');
  assert.equal(form.get("seed"), "1");
  assert.equal(form.get("input_reference").name, "first.png");
});

test("an id cannot leave its place in an address", () => {
  assert.equal(jobPath("image", "../x?y"), "v1/images/..%2Fx%3Fy");
  assert.equal(contentPath("video", "video_1", "thumbnail"), "v1/videos/video_1/content?variant=thumbnail");
});
