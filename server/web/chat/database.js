// Where conversations are kept: the browser's own database, on this machine alone. Where a browser
// refuses one, they last as long as the page.

const NAME = "outdraft";
const STORES = ["conversations", "traces"];
let opening = null;

/** Give everything of a store. */
export function readAll(store) {
  return run(store, "readonly", (place) => place.getAll());
}

/** Give what a store has under a key; undefined = nothing. */
export function read(store, key) {
  return run(store, "readonly", (place) => place.get(key));
}

/** Put something into a store; its `id` is its key. */
export function write(store, value) {
  return run(store, "readwrite", (place) => place.put(value));
}

/** Take something out of a store. */
export function erase(store, key) {
  return run(store, "readwrite", (place) => place.delete(key));
}

async function run(store, mode, ask) {
  opening ??= open();
  const database = await opening;
  if (!database) return ask(memory(store)).result;
  return await new Promise((resolve, reject) => {
    const transaction = database.transaction(store, mode);
    const request = ask(transaction.objectStore(store));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
}

function open() {
  return new Promise((resolve) => {
    let request;
    try {
      request = indexedDB.open(NAME, 1);
    } catch {
      resolve(null);
      return;
    }
    request.onupgradeneeded = () => {
      for (const store of STORES) request.result.createObjectStore(store, { keyPath: "id" });
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => resolve(null);
  });
}

const memories = Object.fromEntries(STORES.map((store) => [store, new Map()]));

function memory(store) {
  const kept = memories[store];
  return {
    getAll: () => ({ result: [...kept.values()] }),
    get: (key) => ({ result: kept.get(key) }),
    put: (value) => ({ result: kept.set(value.id, structuredClone(value)) }),
    delete: (key) => ({ result: kept.delete(key) }),
  };
}
