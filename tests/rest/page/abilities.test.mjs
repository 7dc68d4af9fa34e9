import assert from "node:assert/strict";
import { test } from "node:test";

import {
  abilities,
  defaultsOf,
  mostFrames,
  pipelineOf,
  pipelinesOf,
  shapes,
} from "../../../rest/page/modules/abilities.js";
import { isMediaComing } from "../../../rest/page/modules/server_state.js";

const CHAT = { id: "c", root: "c", capabilities: ["chat"] };
const MEDIA = {
  id: "v",
  root: "v",
  capabilities: ["image", "video", "audio"],
  generation: {
    default_pipeline: "two_stage",
    pipelines: [
      { name: "one_stage", makes_video: true, needs: [] },
      {
        name: "two_stage",
        makes_video: true,
        needs: [],
        defaults: { width: 64, height: 64, num_frames: 9, frame_rate: 24 },
      },
      { name: "retake", makes_video: true, needs: ["video", "window"] },
      { name: "text_to_audio", makes_video: false, needs: [] },
    ],
  },
};

test("aliases are not models of their own", () => {
  const able = abilities([CHAT, { ...CHAT, id: "alias" }, MEDIA]);
  assert.deepEqual(
    able.chat.map(({ id }) => id),
    ["c"],
  );
  assert.equal(able.media.id, "v");
  assert.deepEqual(able.modes, ["video", "image", "audio"]);
});

test("without a video model there is nothing to make", () => {
  const able = abilities([CHAT]);
  assert.equal(able.media, null);
  assert.deepEqual(able.modes, []);
});

test("a mode offers the pipelines that need no clip", () => {
  const able = abilities([MEDIA]);
  assert.deepEqual(
    pipelinesOf(able, "video").map(({ name }) => name),
    ["one_stage", "two_stage"],
  );
  assert.deepEqual(
    pipelinesOf(able, "audio").map(({ name }) => name),
    ["text_to_audio"],
  );
  assert.equal(pipelineOf(able, "video", "gone").name, "two_stage");
});

test("a model that says little can be used all the same", () => {
  const able = abilities([{ id: "v", capabilities: ["video"] }]);
  assert.equal(pipelineOf(able, "video", null), null);
  assert.ok(defaultsOf(null).width > 0);
});

test("shapes have the model's multiples and the default is one of them", () => {
  for (const [width, height, multiple] of [
    [768, 512, 64],
    [64, 64, 32],
    [1920, 1088, 64],
    [64, 64, 64],
  ]) {
    const all = shapes({ width, height }, multiple);
    assert.equal(all.length, 3);
    assert.ok(all.some((shape) => shape.width === width && shape.height === height));
    for (const shape of all)
      assert.ok(
        shape.width % multiple === 0 && shape.height % multiple === 0 && shape.width > 0,
        JSON.stringify(shape),
      );
    assert.equal(new Set(all.map((shape) => `${shape.width}x${shape.height}`)).size, 3);
  }
});

test("the longest film has a length that the model can do", () => {
  assert.equal(mostFrames({ num_frames: 121, frame_rate: 24 }, 8) % 8, 1);
  assert.equal(mostFrames({ num_frames: 9, frame_rate: 24 }, 8), 25);
});

test("a model on its way is told from one that is not there", () => {
  const video = (reason) => isMediaComing({ video: { ready: false, reason } });
  assert.ok(video("the video model is loading"));
  assert.ok(video("the model ltx is still loading"));
  assert.ok(!video("no model that makes video is loaded"));
  assert.ok(!video("the server was started without a video model; start it with --video and the path of a checkpoint"));
  assert.ok(!video(null));
});

test("the names of adapters are LoRAs of full strength", () => {
  const able = abilities([{ id: "v", capabilities: ["video"], generation: { adapters: ["look"] } }]);
  assert.deepEqual(able.loras, [{ name: "look", strengths: [1] }]);
});
