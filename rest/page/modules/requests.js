/** From what the form says to what the server is sent. Pure: what is empty is left out, the server's defaults stay. */

const CREATE = { video: "v1/videos", image: "v1/images/generations", audio: "v1/audio/generations" };
const BASE = { video: "v1/videos", image: "v1/images", audio: "v1/audio" };
const LIST = { video: "v1/videos", image: "v1/images", audio: "v1/audio/generations" };

/** Where new things of a kind are asked for. */
export const createPath = (kind) => CREATE[kind];
/** Where those that there are are listed. */
export const listPath = (kind) => LIST[kind];
/** Where one of them lives. */
export const jobPath = (kind, id) => `${BASE[kind]}/${encodeURIComponent(id)}`;
/** One of its files. */
export const contentPath = (kind, id, variant) => `${jobPath(kind, id)}/content?variant=${variant}`;

/**
 * The fields of a request.
 * @param mode video, image or audio
 * @param form what the form holds; empty strings and null were left alone
 */
export function fieldsOf(mode, form) {
  const fields = { prompt: form.prompt.trim() };
  const put = (name, value) => {
    if (value !== null && value !== undefined && value !== "") fields[name] = value;
  };
  put("model", form.model);
  put("pipeline", form.pipeline);
  if (mode !== "audio") {
    put("width", form.width);
    put("height", form.height);
  }
  if (mode !== "image") {
    put("num_frames", form.num_frames);
    put("frame_rate", form.frame_rate);
  }
  put("seed", form.seed);
  put("num_inference_steps", form.num_inference_steps);
  put("negative_prompt", form.negative_prompt);
  put("guidance", guidanceOf(form));
  if (mode === "video") put("generate_audio", form.generate_audio);
  if (form.loras?.length) fields.adapters = form.loras.map(({ name, strength }) => [name, strength]);
  return fields;
}

function guidanceOf({ guidance_video: video, guidance_audio: audio }) {
  const guidance = {};
  if (isNumber(video)) guidance.video = { guidance_scale: video };
  if (isNumber(audio)) guidance.audio = { guidance_scale: audio };
  return Object.keys(guidance).length ? guidance : null;
}

function isNumber(value) {
  return typeof value === "number" && Number.isFinite(value);
}

/** The form of fields for a request that carries files; lists and objects become JSON. */
export function multipart(fields, files) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    form.set(name, typeof value === "object" ? JSON.stringify(value) : String(value));
  }
  for (const [name, file] of Object.entries(files)) form.set(name, file, file.name || `${name}.png`);
  return form;
}

/** What a finished job was made of, for the form: the other way round. */
export function formOf(job) {
  const params = job.params ?? {};
  const guidance = params.guidance ?? {};
  return {
    prompt: params.prompt ?? job.prompt ?? "",
    pipeline: params.pipeline ?? null,
    width: params.width ?? null,
    height: params.height ?? null,
    num_frames: params.num_frames ?? null,
    frame_rate: params.frame_rate ?? null,
    seed: params.seed ?? null,
    num_inference_steps: params.num_inference_steps ?? null,
    negative_prompt: params.negative_prompt ?? "",
    guidance_video: guidance.video?.guidance_scale ?? null,
    guidance_audio: guidance.audio?.guidance_scale ?? null,
    generate_audio: params.generate_audio ?? null,
    loras: lorasOf(params.adapters),
  };
}

function lorasOf(adapters) {
  if (!adapters) return [];
  const pairs = Array.isArray(adapters) ? adapters : Object.entries(adapters);
  return pairs.map((pair) => {
    const [name, strengths] = Array.isArray(pair) ? pair : [pair.name ?? pair, pair.strengths ?? 1];
    return { name, strength: Array.isArray(strengths) ? strengths[0] : (strengths ?? 1) };
  });
}
