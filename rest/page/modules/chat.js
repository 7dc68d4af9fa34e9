/** The chat pane: conversations, streaming answers, stop. */

import { announce } from "./announce.js";
import { byId, h, iconButton, show } from "./dom.js";
import { confirmLoss } from "./dialogs.js";
import { parse, render } from "./markdown.js";
import { ago, shortened } from "./words.js";

const SUGGESTIONS = [
  "Explain how a loom weaves cloth, in five sentences.",
  "Write a short poem about a lighthouse in the fog.",
  "What is the capital of France?",
];
const RENDER_MS = 60;
const SPOKEN_CHARACTERS = 600;

/** One pane; `filmThis(text)` hands words over to the studio. */
export class Chat {
  #api;
  #conversation = null;
  #conversations;
  #filmThis;
  #input = byId("chat-input");
  #isReady = false;
  #messages = byId("messages");
  #model = null;
  #running = null;
  #scroll = byId("chat-scroll");
  #settings;
  #stirLoom;
  #threads;

  constructor({ api, conversations, settings, threads, filmThis, stirLoom }) {
    this.#api = api;
    this.#conversations = conversations;
    this.#settings = settings;
    this.#threads = threads;
    this.#filmThis = filmThis;
    this.#stirLoom = stirLoom;
    this.#connect();
  }

  /** Show the newest conversation that has words in it. */
  async start() {
    const [newest] = await this.#conversations.list();
    const wanted = this.#settings.get("conversation");
    const all = await this.#conversations.list();
    this.#open(all.find(({ id }) => id === wanted) ?? newest ?? fresh());
    if (!this.#conversations.isLasting) byId("conversation-note").textContent = "This browser keeps no conversations.";
  }

  /** Which models answer, and whether they can now. */
  update({ models, isReady }) {
    this.#isReady = isReady;
    const select = byId("chat-model");
    const chosen = models.find(({ id }) => id === this.#settings.get("chat-model")) ?? models[0];
    select.replaceChildren(...models.map(({ id }) => h("option", { value: id, selected: id === chosen?.id }, id)));
    show(byId("chat-model-field"), models.length > 1);
    this.#model = chosen?.id ?? this.#model;
    this.#showButtons();
  }

  /** There is no engine now; what is written waits. */
  pause() {
    this.#isReady = false;
    this.#showButtons();
  }

  #connect() {
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send(this.#input.value);
    });
    this.#input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#send(this.#input.value);
    });
    this.#input.addEventListener("input", () => this.#showButtons());
    byId("stop").addEventListener("click", () => this.#running?.abort());
    byId("new-conversation").addEventListener("click", () => {
      this.#open(fresh());
      this.#input.focus();
    });
    connectMenu("conversation-button", "conversation-menu", () => this.#showList());
    connectMenu("chat-settings-button", "chat-settings");
    byId("chat-model").addEventListener("change", ({ target }) => {
      this.#model = target.value;
      this.#settings.set("chat-model", target.value);
    });
    this.#connectSetting("chat-system");
    this.#connectSetting("chat-temperature", (value) => {
      byId("chat-temperature-value").textContent = value;
    });
    byId("chat-settings").addEventListener("submit", (event) => event.preventDefault());
    byId("suggestions").replaceChildren(
      ...SUGGESTIONS.map((text) => h("li", {}, h("button", { type: "button", onclick: () => this.#send(text) }, text))),
    );
  }

  #connectSetting(id, tell = () => {}) {
    const field = byId(id);
    field.value = this.#settings.get(id) ?? field.value;
    tell(field.value);
    field.addEventListener("input", () => {
      this.#settings.set(id, field.value);
      tell(field.value);
    });
  }

  // -- conversations --------------------------------------------------------------------------------------------------

  #open(conversation) {
    this.#running?.abort();
    this.#conversation = conversation;
    this.#settings.set("conversation", conversation.id);
    byId("conversation-title").textContent = conversation.title || "New conversation";
    this.#messages.replaceChildren(...conversation.messages.map((message) => this.#card(message).element));
    show(byId("chat-welcome"), conversation.messages.length === 0);
    this.#scroll.scrollTop = this.#scroll.scrollHeight;
  }

  async #showList() {
    const all = await this.#conversations.list();
    const rows = all.map((conversation) =>
      h(
        "li",
        {},
        h(
          "button",
          {
            type: "button",
            "aria-current": conversation.id === this.#conversation.id ? "true" : null,
            onclick: () => {
              closeMenu("conversation-button", "conversation-menu");
              this.#open(conversation);
              byId("conversation-button").focus();
            },
          },
          h("span", {}, conversation.title),
          h("small", {}, ago(conversation.updatedAt / 1000)),
        ),
        iconButton("bin", `Delete ${conversation.title}`, () => this.#delete(conversation)),
      ),
    );
    byId("conversation-list").replaceChildren(
      ...(rows.length ? rows : [h("li", { class: "fine" }, "No conversations yet.")]),
    );
  }

  async #delete(conversation) {
    if (!(await confirmLoss("Delete this conversation?", `“${conversation.title}” is kept in this browser only.`)))
      return;
    await this.#conversations.remove(conversation.id);
    if (conversation.id === this.#conversation.id) this.#open(fresh());
    await this.#showList();
    byId("conversation-button").focus();
  }

  async #save(conversation) {
    conversation.updatedAt = Date.now();
    await this.#conversations.put(conversation);
  }

  // -- asking ---------------------------------------------------------------------------------------------------------

  async #send(text) {
    if (!text.trim() || this.#running || !this.#isReady) return;
    const conversation = this.#conversation;
    this.#input.value = "";
    conversation.title ||= shortened(text);
    byId("conversation-title").textContent = conversation.title;
    this.#add({ role: "user", content: text.trim() });
    await this.#save(conversation);
    await this.#answer(conversation);
  }

  async #again() {
    if (this.#running || this.#conversation.messages.at(-1)?.role !== "assistant") return;
    this.#conversation.messages.pop();
    this.#messages.lastElementChild.remove();
    await this.#answer(this.#conversation);
  }

  async #answer(conversation) {
    const sent = this.#body(conversation);
    const message = { role: "assistant", content: "" };
    const card = this.#add(message);
    card.element.classList.add("is-writing");
    card.draw();
    this.#running = new AbortController();
    this.#showButtons();
    this.#stirLoom();
    const started = performance.now();
    let numPieces = 0;
    try {
      const options = { method: "POST", json: sent, signal: this.#running.signal };
      for await (const { data } of this.#api.events("v1/chat/completions", options)) {
        numPieces += this.#take(data, message, card);
      }
      message.rate = numPieces / Math.max((performance.now() - started) / 1000, 0.001);
    } catch (error) {
      if (error.name === "AbortError") message.note = "Stopped.";
      else message.error = error.message;
    }
    this.#running = null;
    card.element.classList.remove("is-writing");
    card.draw();
    this.#showButtons();
    announce(message.error ?? `${message.content.slice(0, SPOKEN_CHARACTERS)} ${message.note ?? ""}`);
    await this.#save(conversation);
  }

  #take(chunk, message, card) {
    if (chunk.id && message.thread === undefined) {
      message.thread = this.#threads.colourOf(chunk.id);
      this.#threads.name(chunk.id, "Chat");
      card.draw();
    }
    const choice = chunk.choices?.[0];
    const text = choice?.delta?.content ?? "";
    if (choice?.finish_reason === "length") message.note = "Cut off: the answer reached the model's limit.";
    if (!text) return 0;
    message.content += text;
    card.drawSoon();
    return 1;
  }

  #body(conversation) {
    const system = byId("chat-system").value.trim();
    const said = conversation.messages.filter(({ content }) => content).map(({ role, content }) => ({ role, content }));
    return {
      model: this.#model ?? undefined,
      stream: true,
      temperature: Number(byId("chat-temperature").value),
      messages: system ? [{ role: "system", content: system }, ...said] : said,
    };
  }

  // -- showing --------------------------------------------------------------------------------------------------------

  #add(message) {
    this.#conversation.messages.push(message);
    show(byId("chat-welcome"), false);
    const card = this.#card(message);
    this.#messages.append(card.element);
    this.#scroll.scrollTop = this.#scroll.scrollHeight;
    return card;
  }

  #card(message) {
    const words = h("div", { class: "words" });
    const notes = h("div", {});
    const tools = h("div", { class: "message-tools" });
    const said = h("h3", { class: "visually-hidden" }, message.role === "user" ? "You" : "Model");
    const element = h("li", { class: `message ${message.role}` }, said, words, notes, tools);
    let timer = 0;
    const draw = () => {
      clearTimeout(timer);
      timer = 0;
      const isAtEnd = this.#scroll.scrollHeight - this.#scroll.scrollTop - this.#scroll.clientHeight < 60;
      if (message.thread !== undefined) element.classList.add(`thread-${message.thread}`);
      words.replaceChildren(...(message.role === "user" ? [message.content] : render(parse(message.content))));
      notes.replaceChildren(...noteOf(message));
      tools.replaceChildren(...(element.classList.contains("is-writing") ? [] : this.#tools(message)));
      if (isAtEnd) this.#scroll.scrollTop = this.#scroll.scrollHeight;
    };
    draw();
    return {
      element,
      draw,
      drawSoon: () => {
        timer ||= setTimeout(draw, RENDER_MS);
      },
    };
  }

  #tools(message) {
    if (message.role === "user") return [];
    const copy = iconButton("copy", "Copy the answer", async () => {
      await navigator.clipboard.writeText(message.content);
      announce("Copied");
    });
    const again = iconButton("again", "Answer again", () => this.#again());
    const film = iconButton("film", "Use as a prompt in the studio", () => this.#filmThis(message.content), {
      "data-needs": "media",
    });
    return message.content ? [copy, again, film] : [again];
  }

  #showButtons() {
    const isRunning = this.#running !== null;
    const hadFocus = [byId("send"), byId("stop")].includes(document.activeElement);
    show(byId("stop"), isRunning);
    show(byId("send"), !isRunning);
    byId("send").disabled = !this.#isReady || !this.#input.value.trim();
    for (const button of byId("suggestions").querySelectorAll("button")) button.disabled = !this.#isReady;
    if (hadFocus) (isRunning ? byId("stop") : this.#input).focus();
  }
}

function fresh() {
  return {
    id: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`,
    title: "",
    updatedAt: Date.now(),
    messages: [],
  };
}

function noteOf({ error, note, rate }) {
  if (error) return [h("p", { class: "note is-error", role: "alert" }, error)];
  if (note) return [h("p", { class: "note" }, note)];
  return rate ? [h("p", { class: "note" }, `${rate < 10 ? rate.toFixed(1) : Math.round(rate)} tokens a second`)] : [];
}

// -- menus that drop down from a button -------------------------------------------------------------------------------

function connectMenu(buttonId, menuId, onOpen = () => {}) {
  const button = byId(buttonId);
  const menu = byId(menuId);
  button.addEventListener("click", () => {
    const willOpen = menu.hidden;
    show(menu, willOpen);
    button.setAttribute("aria-expanded", String(willOpen));
    if (willOpen) onOpen();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || menu.hidden || byId("confirm").open) return;
    closeMenu(buttonId, menuId);
    button.focus();
  });
  document.addEventListener("pointerdown", ({ target }) => {
    if (!menu.hidden && !menu.contains(target) && !button.contains(target) && !target.closest("dialog"))
      closeMenu(buttonId, menuId);
  });
}

function closeMenu(buttonId, menuId) {
  show(byId(menuId), false);
  byId(buttonId).setAttribute("aria-expanded", "false");
}
