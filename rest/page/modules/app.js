/** Puts the page together: who asks the server, what it can do, and the parts that show it. */

import { abilities } from "./abilities.js";
import { Api } from "./api.js";
import { Chat } from "./chat.js";
import { KeyDialog } from "./dialogs.js";
import { byId, show } from "./dom.js";
import { Easel } from "./easel.js";
import { Gallery } from "./gallery.js";
import { Loom } from "./loom.js";
import { ServerState, isMediaComing } from "./server_state.js";
import { Conversations, Settings } from "./store.js";
import { connectTheme } from "./theme.js";
import { Threads } from "./threads.js";

const VIEWS = ["chat", "studio"];

const settings = new Settings();
const keyStore = {
  get: () => settings.get("api-key"),
  set: (key) => settings.set("api-key", key),
  remove: () => settings.remove("api-key"),
};
const keyDialog = new KeyDialog(keyStore);
const api = new Api(keyStore, (message) => keyDialog.ask(message));
const threads = new Threads();
const loom = new Loom(api, threads);

const easel = new Easel(api, {
  onMade: (kind, job) => {
    gallery.made(kind, job);
    loom.stir();
  },
  onDrawing: (drawing) => {
    gallery.drawing(drawing);
    loom.stir();
  },
  onRewriting: () => loom.stir(),
  onRewriteId: (id) => threads.name(id, "Rewriting a prompt"),
});
const gallery = new Gallery(api, threads, {
  onReuse: (kind, job) => easel.reuse(kind, job),
  onExtend: (job) => easel.extend(job),
  onRemix: (job) => easel.remix(job),
});
const chat = new Chat({
  api,
  conversations: await Conversations.open(),
  settings,
  threads,
  filmThis: (text) => {
    location.hash = "studio";
    showView();
    easel.write(text);
  },
  stirLoom: () => loom.stir(),
});
const server = new ServerState(api, showServer);

connectTheme(settings, () => loom.repaint());
byId("key-button").addEventListener("click", async () => {
  const key = await keyDialog.ask();
  if (key) keyStore.set(key);
  server.unlock();
});
addEventListener("hashchange", showView);
showView();
await chat.start();
await server.look();

function showView() {
  const wanted = location.hash.slice(1);
  const view = VIEWS.includes(wanted) ? wanted : document.body.dataset.view;
  document.body.dataset.view = view;
  for (const name of VIEWS) {
    const tab = byId(`tab-${name}`);
    if (name === view) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  }
  loom.repaint();
}

function showServer({ server: state, reason, models, modalities }) {
  const isReady = state === "ready";
  document.body.dataset.server = state;
  byId("server-text").textContent = words(state, models);
  byId("server-text").title = reason || words(state, models);
  const banner = byId("banner");
  const isStuck = state === "offline" || state === "locked";
  show(banner, isStuck);
  banner.textContent = isStuck ? reason : "";
  byId("chat-input").placeholder =
    state === "loading" ? "The engine is loading; you can write already" : "Write a message";
  if (isReady) showModels(abilities(models), modalities);
  else {
    chat.pause();
    easel.pause();
  }
  loom.isReady = isReady;
}

function showModels(able, modalities) {
  const isMedia = able.media !== null;
  document.body.dataset.media = isMedia ? "some" : "none";
  show(byId("studio-absent"), !isMedia);
  show(byId("easel"), isMedia);
  const waiting = ["video", "image"].map((name) => modalities[name]?.reason).find(Boolean);
  const isComing = !isMedia && isMediaComing(modalities);
  byId("absent-title").textContent = isComing ? "The video model is loading" : "No video model is loaded";
  show(byId("absent-text"), !isComing);
  show(byId("absent-command"), !isComing);
  byId("absent-reason").textContent = waiting ?? "";
  chat.update({ models: able.chat, isReady: able.chat.length > 0 });
  if (isMedia) easel.update(able);
  gallery.update(able.modes);
}

function words(state, models) {
  if (state === "offline") return "Not reachable";
  if (state === "locked") return "Needs an API key";
  if (state === "loading") return "Loading…";
  const names = models.filter((model) => model.root === undefined || model.root === model.id).map(({ id }) => id);
  return names.join(" + ");
}
