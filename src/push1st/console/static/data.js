// @ts-check
/** The console's state in this tab, and its connections to the server: the place in the hash, calls of the API, and the live channel. */
import { useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { nodeName } from "./text.js";

const CALL_SECONDS = 15;
const SESSION_SECONDS = 300;
const CLOSE_SECONDS = 30;
/** The seconds after which a call is repeated that was refused with 503, for example because the broker is away. */
const UNAVAILABLE_SECONDS = 5;
/** An overview arrives every few seconds. If none arrives for so long, the worker of the channel does not run. */
const SILENT_SECONDS = 10;
const RETRY_SECONDS = [0.3, 1, 2, 4, 8];

/**
 * A value with listeners.
 * @template T
 */
export class Store {
  /** @param {T} value */
  constructor(value) {
    this.value = value;
    /** @type {Set<() => void>} */
    this.listeners = new Set();
  }

  /** @param {T} value */
  set(value) {
    if (value === this.value) return;
    this.value = value;
    for (const listener of [...this.listeners]) listener();
  }

  /** @param {() => void} listener */
  listen(listener) {
    this.listeners.add(listener);
    return () => void this.listeners.delete(listener);
  }
}

/**
 * Returns the value of a store, and renders again when it changes.
 * @template T
 * @param {Store<T>} store
 * @returns {T}
 */
export function useStore(store) {
  const [, again] = useState(0);
  const shown = store.value;
  useEffect(() => {
    const stop = store.listen(() => again((n) => n + 1));
    if (store.value !== shown) again((n) => n + 1); // it has changed before this effect
    return stop;
  }, [store]);
  return shown;
}

/** The state of the sign-in: "unknown", "in" or "out". @type {Store<"unknown" | "in" | "out">} */
export const session = new Store(/** @type {"unknown" | "in" | "out"} */ ("unknown"));
/** whether a session of this tab has ended */
export let hasEnded = false;
/** The reason why this worker answers alone; "" if the broker is connected. @type {Store<string>} */
export const away = new Store("");
/** The time since which the worker of this tab has no connection to the broker; 0 if it has one. */
let awayAt = 0;
away.listen(() => (awayAt = away.value ? awayAt || serverTime() : 0));
export const awaySince = () => awayAt;
/** The time since which the server does not answer; 0 if it answers. @type {Store<number>} */
export const lostAt = new Store(0);
/** The result of the last action, for the notice bar. @type {Store<string>} */
export const notice = new Store("");
/** The state of the live channel. @type {Store<"idle" | "connecting" | "open" | "waiting">} */
export const liveState = new Store(/** @type {"idle" | "connecting" | "open" | "waiting"} */ ("idle"));
/** Why the server rejects a further live connection; "" if it does not. */
export const liveFull = new Store("");

// The place in the hash

/** @typedef {{screen: string, params: Record<string, string>}} Place */

/** @returns {Place} */
function place() {
  const [screen, query = ""] = location.hash.replace(/^#\/?/, "").split("?", 2);
  return { screen: screen || "overview", params: Object.fromEntries(new URLSearchParams(query)) };
}

export const route = new Store(place());
addEventListener("hashchange", () => route.set(place()));

/**
 * Returns the address of a screen. Parameters without a value are left out.
 * @param {string} screen
 * @param {Record<string, string | number | boolean | null | undefined>} [params]
 */
export function link(screen, params = {}) {
  return "#/" + screen + query(params);
}

/**
 * Goes to a screen.
 * @param {string} screen
 * @param {Record<string, string | number | boolean | null | undefined>} [params]
 * @param {boolean} [replace] whether the place replaces the current one in the history
 */
export function go(screen, params = {}, replace = false) {
  const hash = link(screen, params);
  if (replace) {
    history.replaceState(null, "", hash);
    route.set(place());
  } else {
    location.hash = hash;
  }
}

/** @param {Record<string, string | number | boolean | null | undefined>} params */
function query(params) {
  const given = Object.entries(params).filter(([, value]) => value !== "" && value !== null && value !== undefined && value !== false);
  const text = new URLSearchParams(given.map(([key, value]) => [key, value === true ? "1" : String(value)])).toString();
  return text && "?" + text;
}

// Calls

/** A call that failed. `status`: the HTTP status; 0 if the server did not answer. */
export class CallError extends Error {
  /** @param {number} status @param {string} message @param {number} [retry] */
  constructor(status, message, retry = 0) {
    super(message);
    this.status = status;
    this.retry = retry;
  }
}

/**
 * Returns a path below `api/` from segments and a query.
 * @param {(string | number)[]} segments
 * @param {Record<string, string | number | boolean | null | undefined>} [params]
 */
export function path(segments, params = {}) {
  return segments.map((one) => encodeURIComponent(one)).join("/") + query(params);
}

/**
 * Calls the API of the console and returns its answer. Throws a CallError.
 * @param {string} method
 * @param {string} path
 * @param {unknown} [body] a value, or JSON text
 * @param {AbortSignal} [signal]
 * @returns {Promise<any>}
 */
export async function call(method, path, body, signal) {
  const aborter = new AbortController();
  const timer = setTimeout(() => aborter.abort(), CALL_SECONDS * 1000);
  signal?.addEventListener("abort", () => aborter.abort());
  try {
    /** @type {RequestInit} */
    const options = { method, signal: aborter.signal, headers: {} };
    if (method !== "GET") options.headers = { "Push1st-Console": "1", "Content-Type": "application/json" };
    if (body !== undefined) options.body = typeof body === "string" ? body : JSON.stringify(body);
    const response = await fetch("api/" + path, options);
    lostAt.set(0);
    const date = Date.parse(response.headers.get("Date") ?? "");
    if (date) ahead = Math.abs(date - Date.now()) < 2000 ? 0 : (date - Date.now()) / 1000;
    const text = await response.text();
    /** @type {any} */
    let answer = null;
    try {
      answer = JSON.parse(text);
    } catch {
      // A proxy answers with a page of its own.
    }
    if (!response.ok) {
      if (response.status === 401 && path !== "login") {
        hasEnded ||= session.value === "in";
        session.set("out");
      }
      const message = answer?.error ?? `The server answered with the status ${response.status}.`;
      throw new CallError(response.status, message, Number(response.headers.get("Retry-After")) || 0);
    }
    if (answer && typeof answer === "object") {
      // On the overview, the worker of the live channel sets `away`: others may have lost the broker alone.
      if ("away" in answer && !(path === "version" && live.watches.has("overview") && liveState.value === "open")) away.set(answer.away || "");
      answer.from = response.headers.get("Push1st-Worker");
    }
    return answer;
  } catch (problem) {
    if (problem instanceof CallError) throw problem;
    if (signal?.aborted) throw new CallError(0, "The console has stopped this request.");
    if (aborter.signal.aborted && !lostAt.value) lostAt.set(Date.now() / 1000);
    if (aborter.signal.aborted) throw new CallError(0, `The server did not answer within ${CALL_SECONDS} seconds.`);
    if (!lostAt.value) lostAt.set(Date.now() / 1000);
    throw new CallError(0, "The server cannot be reached.");
  } finally {
    clearTimeout(timer);
  }
}

/** The seconds by which the server's clock is ahead of the browser's. */
let ahead = 0;

/** Returns the server's time in seconds since 1970, within a second. */
export function serverTime() {
  return Date.now() / 1000 + ahead;
}

/** The names of nodes for people, by their ids. @type {Store<Record<string, string>>} */
export const nodeNames = new Store(/** @type {Record<string, string>} */ ({}));
const NAMES_MS = 10_000;
let namesAt = -NAMES_MS;

/** Keeps the names of nodes. @param {any[]} nodes */
export function learnNames(nodes) {
  const found = nodes.filter((one) => one.machine && nodeNames.value[one.id] === undefined);
  if (found.length) nodeNames.set({ ...nodeNames.value, ...Object.fromEntries(found.map((one) => [one.id, nodeName(one)])) });
}

/**
 * Returns the name of a node for people; its id until the name is known.
 * @param {string} id
 */
export function useNodeName(id) {
  const name = useStore(nodeNames)[id];
  useEffect(() => {
    if (name || !id || performance.now() - namesAt < NAMES_MS) return;
    namesAt = performance.now();
    call("GET", "cluster").then((answer) => learnNames(answer.nodes), () => {});
  }, [id, name]);
  return name ?? id;
}

/** @typedef {{data: any, error: CallError | null, busy: boolean, reload: () => void}} Loaded */

/**
 * Loads an answer, and loads it again when its path changes, when the broker is back, and every `every` seconds while the tab is
 * visible. A search that has reached its limit is repeated only after an error, or when the broker is back after an answer of
 * only one worker. The former answer stays until the next answer arrives.
 * @param {string | null} path null loads nothing
 * @param {number} [every]
 * @returns {Loaded}
 */
export function useCall(path, every = 0) {
  const [state, set] = useState(/** @type {{path: string | null, data: any, error: CallError | null, busy: boolean}} */ ({ path, data: null, error: null, busy: path !== null }));
  const [turn, again] = useState(0);
  const latest = useRef(state);
  latest.current = state;
  useEffect(() => {
    if (path === null) return undefined;
    const aborter = new AbortController();
    set((before) => ({ ...before, busy: true }));
    call("GET", path, undefined, aborter.signal).then(
      (data) => aborter.signal.aborted || set({ path, data, error: null, busy: false }),
      (error) => aborter.signal.aborted || set((before) => ({ path, data: before.path === path ? before.data : null, error, busy: false })),
    );
    return () => aborter.abort();
  }, [path, turn]);
  const seconds = every || (state.error?.status === 503 ? UNAVAILABLE_SECONDS : 0);
  useEffect(() => {
    if (!seconds) return undefined;
    const timer = setInterval(() => {
      if (!document.hidden && !latest.current.busy && !isSpent(latest.current)) again((n) => n + 1);
    }, seconds * 1000);
    return () => clearInterval(timer);
  }, [seconds]);
  useEffect(() => away.listen(() => away.value || (isSpent(latest.current) && !latest.current.data.away) || again((n) => n + 1)), []);
  const isOther = path !== state.path && resource(path) !== resource(state.path);
  return {
    data: isOther ? null : state.data,
    error: isOther ? null : state.error,
    busy: state.busy || path !== state.path,
    reload: () => again((n) => n + 1),
  };
}

/** Returns whether a search has examined as much as it may. @param {{data: any, error: CallError | null}} state */
function isSpent({ data, error }) {
  return !error && data?.complete === false;
}

/** @param {string | null} path */
function resource(path) {
  return path?.split("?")[0];
}

/** Signs in. Throws a CallError. @param {string} password */
export async function signIn(password) {
  await call("POST", "login", { password });
  session.set("in");
}

/** Ends the session, and loads the console again, so that the tab keeps nothing that the operator has seen. */
export async function signOut() {
  try {
    await call("POST", "logout");
    location.hash = "";
    location.reload();
  } catch (problem) {
    notice.set(/** @type {Error} */ (problem).message);
  }
}

/** Finds out whether the operator is signed in. */
export async function checkSession() {
  try {
    await call("GET", "session");
    session.set("in");
  } catch (problem) {
    if (!(problem instanceof CallError) || problem.status !== 401) throw problem;
  }
}

setInterval(() => {
  if (!document.hidden && session.value === "in") checkSession().catch(() => {});
}, SESSION_SECONDS * 1000);

// The live channel

/** @typedef {{request: Record<string, unknown>, take: (answer: any) => void}} Watch */

class Live {
  constructor() {
    /** @type {WebSocket | null} */
    this.socket = null;
    /** @type {Map<string, Watch>} */
    this.watches = new Map();
    this.tries = 0;
    this.timer = 0;
    this.heardAt = 0;
    setInterval(() => this.check(), 1000);
    document.addEventListener("visibilitychange", () => this.visible());
  }

  /**
   * Watches something until the returned function is called.
   * @param {string} name
   * @param {Record<string, unknown>} request
   * @param {(answer: any) => void} take
   */
  watch(name, request, take) {
    const watch = { request, take };
    this.watches.set(name, watch);
    this.send({ watch: name, ...request });
    this.open();
    return () => {
      if (this.watches.get(name) !== watch) return;
      this.watches.delete(name);
      this.send({ unwatch: name });
      this.rest();
    };
  }

  /** Watches something again from its beginning. @param {string} name */
  again(name) {
    const watch = this.watches.get(name);
    if (!watch) return;
    this.send({ unwatch: name });
    this.send({ watch: name, ...watch.request });
  }

  /** @param {unknown} message */
  send(message) {
    if (this.socket?.readyState === WebSocket.OPEN && !document.hidden) this.socket.send(JSON.stringify(message));
  }

  open() {
    clearTimeout(this.timer);
    if (this.socket || document.hidden || !this.watches.size || session.value !== "in") return;
    const url = new URL("api/live", location.href);
    url.protocol = url.protocol.replace("http", "ws");
    url.hash = "";
    const socket = (this.socket = new WebSocket(url));
    this.heardAt = performance.now();
    liveState.set("connecting");
    socket.onopen = () => {
      if (!liveFull.value) this.opened();
      for (const [name, { request }] of this.watches) this.send({ watch: name, ...request });
      this.rest();
    };
    socket.onmessage = ({ data }) => this.receive(JSON.parse(data));
    socket.onclose = ({ code, reason }) => this.closed(socket, code, reason);
  }

  check() {
    const { socket } = this;
    if (document.hidden || !this.watches.has("overview")) this.heardAt = performance.now();
    if (!socket || performance.now() - this.heardAt < SILENT_SECONDS * 1000) return;
    socket.close(); // the browser waits for the answer of the server
    this.closed(socket, 0);
  }

  opened() {
    this.tries = 0;
    liveFull.set("");
    liveState.set("open");
  }

  /** @param {any} message */
  receive(message) {
    this.opened();
    this.heardAt = performance.now();
    if ("overview" in message) this.watches.get("overview")?.take(message.overview);
    else if ("events" in message) this.watches.get("inspector")?.take(message);
    else if ("error" in message) for (const watch of this.watches.values()) watch.take(message);
  }

  /** @param {WebSocket} socket @param {number} code @param {string} [reason] */
  closed(socket, code, reason = "") {
    if (socket !== this.socket) return;
    this.socket = null;
    liveFull.set(code === 1013 ? reason : "");
    if (!this.watches.size || document.hidden) return liveState.set("idle");
    liveState.set("waiting");
    const seconds = code === 4401 && !this.tries ? 0 : RETRY_SECONDS[Math.min(this.tries, RETRY_SECONDS.length - 1)];
    this.tries += 1;
    // A failed handshake has no status in a browser, so a call finds out whether the session has ended.
    if (this.tries > 1) checkSession().catch(() => {});
    this.timer = setTimeout(() => this.open(), seconds * 1000 * (0.8 + Math.random() * 0.4));
    return undefined;
  }

  visible() {
    if (document.hidden) {
      if (this.socket?.readyState === WebSocket.OPEN) {
        for (const name of this.watches.keys()) this.socket.send(JSON.stringify({ unwatch: name }));
      }
      this.rest();
    } else if (this.socket) {
      clearTimeout(this.timer);
      for (const [name, { request }] of this.watches) this.send({ watch: name, ...request });
    } else {
      this.open();
    }
  }

  /** Closes the channel after half a minute in which nothing is watched. */
  rest() {
    clearTimeout(this.timer);
    if (this.watches.size && !document.hidden) return;
    this.timer = setTimeout(() => this.close(), CLOSE_SECONDS * 1000);
  }

  close() {
    clearTimeout(this.timer);
    const socket = this.socket;
    this.socket = null;
    socket?.close();
    liveState.set("idle");
  }
}

export const live = new Live();
session.listen(() => (session.value === "in" ? live.open() : live.close()));

/**
 * Watches something while the component is shown.
 * @param {string} name
 * @param {Record<string, unknown> | null} request null watches nothing
 * @param {(answer: any) => void} take
 */
export function useLive(name, request, take) {
  const latest = useRef(take);
  latest.current = take;
  useEffect(() => (request ? live.watch(name, request, (answer) => latest.current(answer)) : undefined), [name, JSON.stringify(request)]);
}
