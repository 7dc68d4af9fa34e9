/** What the browser keeps: conversations in IndexedDB, small settings in localStorage. Nothing of it leaves it. */

const DATABASE = "braid";
const CONVERSATIONS = "conversations";

/** Small settings; where the browser forbids them (private windows), they live as long as the page. */
export class Settings {
  #memory = new Map();

  get(name) {
    try {
      return localStorage.getItem(`braid.${name}`) ?? this.#memory.get(name) ?? null;
    } catch {
      return this.#memory.get(name) ?? null;
    }
  }

  set(name, value) {
    this.#memory.set(name, value);
    try {
      localStorage.setItem(`braid.${name}`, value);
    } catch {
      return; // kept in memory
    }
  }

  remove(name) {
    this.#memory.delete(name);
    try {
      localStorage.removeItem(`braid.${name}`);
    } catch {
      return; // was never there
    }
  }
}

/** Conversations: `{id, title, updatedAt, messages: [{role, content, …}]}`. */
export class Conversations {
  #database = null;
  #memory = new Map();

  /** Opens the database; without one, conversations end with the page. */
  static async open() {
    const store = new Conversations();
    store.#database = await openDatabase().catch(() => null);
    return store;
  }

  get isLasting() {
    return this.#database !== null;
  }

  /** All of them, newest first. */
  async list() {
    const all = this.#database ? await this.#run("readonly", (rows) => rows.getAll()) : [...this.#memory.values()];
    return all.sort((one, other) => other.updatedAt - one.updatedAt);
  }

  async put(conversation) {
    const copy = structuredClone(conversation);
    if (this.#database) await this.#run("readwrite", (rows) => rows.put(copy));
    else this.#memory.set(copy.id, copy);
  }

  async remove(id) {
    if (this.#database) await this.#run("readwrite", (rows) => rows.delete(id));
    else this.#memory.delete(id);
  }

  #run(mode, act) {
    return new Promise((resolve, reject) => {
      const transaction = this.#database.transaction(CONVERSATIONS, mode);
      const request = act(transaction.objectStore(CONVERSATIONS));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onerror = () => reject(transaction.error);
      transaction.onabort = () => reject(transaction.error);
    });
  }
}

function openDatabase() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(DATABASE, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(CONVERSATIONS, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("another tab holds an older version open"));
  });
}
