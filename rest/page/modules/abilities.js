/** What the models of `/v1/models` can do, as the page needs it. Pure. */

const MEDIA = ["video", "image", "audio"];
const PIPELINE_NAMES = {
  one_stage: "One stage",
  two_stage: "Two stages",
  two_stage_hq: "Two stages, high quality",
  distilled: "Distilled, fast",
  keyframe_interpolation: "Between key frames",
  a2vid: "To a given sound",
  text_to_audio: "Sound alone",
};

/** `{chat: [models], media: model or null, modes, pipelines, …}`. An alias is not a model of its own. */
export function abilities(models) {
  const own = models.filter((model) => model.root === undefined || model.root === model.id);
  const has = (model, name) => (model.capabilities ?? []).includes(name);
  const media = own.find((model) => MEDIA.some((name) => has(model, name))) ?? null;
  const chat = own.filter((model) => has(model, "chat") || !(model.capabilities ?? []).length);
  const generation = media?.generation ?? {};
  return {
    chat,
    media,
    modes: media ? MEDIA.filter((name) => has(media, name)) : [],
    pipelines: generation.pipelines ?? [],
    defaultPipeline: generation.default_pipeline ?? null,
    frameMultiple: generation.frame_multiple ?? 8,
    hasAudio: generation.has_audio ?? (media ? has(media, "audio") : false),
    loras: generation.loras ?? (generation.adapters ?? []).map((name) => ({ name, strengths: [1] })),
  };
}

/** The pipelines that a person can start from a prompt (and perhaps a picture) in a mode. */
export function pipelinesOf(able, mode) {
  const needs = (pipeline) => pipeline.needs ?? [];
  if (mode === "audio") return able.pipelines.filter((pipeline) => pipeline.makes_video === false);
  return able.pipelines.filter((pipeline) => pipeline.makes_video !== false && needs(pipeline).length === 0);
}

/** The pipeline of that name in a mode, or the one that the server would take. */
export function pipelineOf(able, mode, name) {
  const there = pipelinesOf(able, mode);
  const find = (wanted) => there.find((pipeline) => pipeline.name === wanted);
  return find(name) ?? find(able.defaultPipeline) ?? there[0] ?? null;
}

export function pipelineName(name) {
  return PIPELINE_NAMES[name] ?? name.replaceAll("_", " ");
}

/** Whether it follows a guidance scale and a negative prompt; a distilled model does not. */
export function isGuided(pipeline) {
  return pipeline?.has_guidance ?? pipeline?.name !== "distilled";
}

/** What a pipeline does where nothing is said. */
export function defaultsOf(pipeline) {
  const given = pipeline?.defaults ?? {};
  return {
    width: given.width ?? 768,
    height: given.height ?? 512,
    num_frames: given.num_frames ?? 121,
    frame_rate: given.frame_rate ?? 24,
    num_inference_steps: given.num_inference_steps ?? null,
    negative_prompt: given.negative_prompt ?? "",
    guidance: given.guidance ?? {},
  };
}

/** Wide, tall and square sizes with about as many pixels as the default, in the model's multiples. */
export function shapes(defaults, multiple = 32) {
  const long = Math.max(defaults.width, defaults.height);
  const short = Math.min(defaults.width, defaults.height);
  const side = Math.max(multiple, Math.round(Math.sqrt(long * short) / multiple) * multiple);
  const wide = { name: "Wide", kind: "wide", width: long, height: short };
  const tall = { name: "Tall", kind: "tall", width: short, height: long };
  const square = { name: "Square", kind: "square", width: side, height: side };
  if (long !== short) return [wide, tall, square];
  const other = multiple * Math.max(1, Math.round((side * 0.75) / multiple));
  const longer = multiple * Math.max(2, Math.round((side * 1.33) / multiple));
  return [square, { ...wide, width: longer, height: other }, { ...tall, width: other, height: longer }];
}

/** The longest film that the slider offers: twice the default, and ten seconds of it at least on large models. */
export function mostFrames(defaults, multiple) {
  const wanted = Math.max(defaults.num_frames * 2, defaults.num_frames > 60 ? defaults.frame_rate * 10 : 0);
  return Math.ceil(wanted / multiple) * multiple + 1;
}
