// Values that views watch.
import { useEffect, useReducer } from "preact-hooks";

export class Store {
  constructor(value) {
    this.value = value;
    this.watchers = new Set();
  }
  set(value) {
    this.value = value;
    for (const watcher of [...this.watchers]) watcher();
  }
  change(fields) {
    this.set({ ...this.value, ...fields });
  }
}

// The value of a store; the component is drawn again with each new one.
export function useStore(store) {
  const [, again] = useReducer((n) => n + 1, 0);
  useEffect(() => {
    store.watchers.add(again);
    again();
    return () => store.watchers.delete(again);
  }, [store]);
  return store.value;
}

// What a person chose, kept in this browser.
export function remembered(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem("shimmy." + name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

export function remember(name, value) {
  try {
    localStorage.setItem("shimmy." + name, JSON.stringify(value));
  } catch {
    // A browser that keeps nothing: the choice holds until the page is closed.
  }
}
