/** Numbers, times and names of stages as people say them. */

const STAGES = {
  encode: "Reading the prompt",
  prompt: "Reading the prompt",
  rewrite: "Rewriting the prompt",
  condition: "Looking at the picture",
  stage_1: "First stage",
  stage_2: "Second stage",
  denoise: "Drawing",
  upsample: "Enlarging",
  decode: "Developing frames",
  decode_video: "Developing frames",
  decode_audio: "Making the sound",
  vocode: "Making the sound",
  mux: "Writing the file",
  write: "Writing the file",
  write_file: "Writing the file",
  extend: "Going on from the clip",
  queued: "Waiting its turn",
};

/** A stage of a job; what is not known is shown as the server calls it. */
export function stageName(stage) {
  if (!stage) return "Starting";
  return STAGES[stage] ?? capitalised(stage.replaceAll("_", " "));
}

/** `0:07`, `2:05`, `1:02:05`. */
export function clock(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const parts = [Math.floor(whole / 60) % 60, whole % 60];
  if (whole >= 3600) parts.unshift(Math.floor(whole / 3600));
  return parts.map((part, index) => (index ? String(part).padStart(2, "0") : String(part))).join(":");
}

/** How long it will still take: "about 40 s left". */
export function remaining(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 1.5) return "nearly done";
  if (seconds < 90) return `about ${Math.round(seconds)} s left`;
  if (seconds < 5400) return `about ${Math.round(seconds / 60)} min left`;
  return `about ${(seconds / 3600).toFixed(1)} h left`;
}

/** "just now", "5 min ago", "3 h ago", then the date. */
export function ago(seconds, now = Date.now() / 1000) {
  const passed = now - seconds;
  if (passed < 60) return "just now";
  if (passed < 3600) return `${Math.floor(passed / 60)} min ago`;
  if (passed < 86400) return `${Math.floor(passed / 3600)} h ago`;
  return new Date(seconds * 1000).toLocaleDateString(undefined, { day: "numeric", month: "short", year: "numeric" });
}

/** "4 s", "0.4 s". */
export function length(numFrames, frameRate) {
  const seconds = numFrames / frameRate;
  return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
}

/** The first line of a text, cut at a word. */
export function shortened(text, most = 60) {
  const line = text.trim().split("\n")[0];
  if (line.length <= most) return line;
  const cut = line.slice(0, most);
  return `${cut.slice(0, Math.max(cut.lastIndexOf(" "), most / 2))}…`;
}

export function capitalised(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
