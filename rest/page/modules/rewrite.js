/** Has the language model make a fuller prompt of an idea. The person sees it grow, and can take it back. */

const ASKED = {
  video:
    "a short film with sound: the subject and how it looks, what moves and how, the place and the light, the camera, " +
    "and what is heard",
  image: "a picture: the subject and how it looks, the place, the light, the colours and the style",
  audio: "a recording: what makes the sound, where, how near it is, and how it changes",
};
const MOST_TOKENS = 220;

/** The text so far, each time it grows. */
export async function* rewrite(api, idea, { model, kind, signal, onId }) {
  const system =
    `You write prompts for a generative model. Describe ${ASKED[kind]}. Keep everything that the idea says, ` +
    "add only what fits it, in one paragraph of at most 80 words, in the idea's language. " +
    "Answer with the paragraph alone.";
  const messages = [
    { role: "system", content: system },
    { role: "user", content: idea },
  ];
  const json = { model: model ?? undefined, messages, stream: true, temperature: 0.7, max_tokens: MOST_TOKENS };
  let text = "";
  for await (const { data } of api.events("v1/chat/completions", { method: "POST", json, signal })) {
    if (data.id) onId(data.id);
    text += data.choices?.[0]?.delta?.content ?? "";
    const shown = text.trim().replace(/^["“]|["”]$/g, "");
    if (shown) yield shown;
  }
}
