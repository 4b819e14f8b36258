// @ts-check
/** The inspector: what happens in an app, live. The workers report only while somebody watches. */
import { html, useEffect, useLayoutEffect, useRef, useState } from "./vendor/htm-preact.js";
import { away, go, link, live as channels, liveState, useLive, useStore } from "./data.js";
import { bytes, clock, count, date, direction, duration, plain, protocolName, whole } from "./text.js";
import { Check, Data, Filter, live, Node, Problem, Screen, Text } from "./ui.js";

const MAX_ROWS = 1000;
const ROW = 32;
const TALL_ROW = 52;
const NARROW = matchMedia("(max-width: 760px)");
const SPARE = 6;

/** What is reported, in the order of the life of a connection. */
const TYPES = /** @type {const} */ ([
  "connected",
  "disconnected",
  "signed-in",
  "subscribed",
  "unsubscribed",
  "published",
  "client-event",
  "refused",
  "cut-off",
  "asked",
  "webhook-delivered",
  "webhook-failed",
]);
/** @type {Record<string, string>} */
const TONES = { refused: "bad", "cut-off": "bad", "webhook-failed": "bad" };

/** The field of a row with its number in the order of arrival. It stays with the row when an earlier row arrives late. */
const NUMBER = Symbol("number");
let arrived = 0;

/**
 * Rows outlive a change of the filter, but not the tab. `first`: the number of the first row since the console was loaded; `gone`: the
 * rows above `MAX_ROWS` since the last "Clear".
 * @type {{rows: any[], first: number, gone: number, dropped: Record<string, number>}}
 */
let kept = { rows: [], first: 0, gone: 0, dropped: {} };

/** @param {{params: Record<string, string>}} props */
export function Inspector({ params }) {
  const { app, what = "", channel = "", socket = "", user = "", ip = "", data = "" } = params;
  const filter = { what, channel, socket, user, ip, data };
  const state = useStore(liveState);
  const [newest, setNewest] = useState(kept);
  const [frozen, freeze] = useState(/** @type {typeof kept | null} */ (null));
  const view = frozen ?? newest;
  const [follows, follow] = useState(true);
  const [chosen, choose] = useState(/** @type {any} */ (null));
  const [error, fail] = useState("");
  const [worker, name] = useState("one worker");
  const types = what ? what.split(",") : [];
  const request = { filter: { app, ...(types.length ? { what: types } : {}), channel, socket, user, ip, data: Boolean(data) } };
  useEffect(() => {
    clear();
    fail("");
  }, [app]);
  useEffect(() => {
    const timer = error ? setInterval(() => channels.again("inspector"), 5000) : 0;
    return () => clearInterval(timer);
  }, [error]);
  useLive("inspector", request, (answer) => {
    if (answer.error) return fail(answer.error);
    fail("");
    if (answer.worker) name(answer.worker);
    for (const one of answer.events) one[NUMBER] = arrived++;
    const rows = ordered([...kept.rows, ...answer.events]);
    const over = Math.max(0, rows.length - MAX_ROWS);
    const dropped = { ...kept.dropped };
    for (const [name, n] of Object.entries(answer.dropped || {})) dropped[name] = (dropped[name] ?? 0) + Number(n);
    kept = { rows: over ? rows.slice(over) : rows, first: kept.first + over, gone: kept.gone + over, dropped };
    setNewest(kept);
    return undefined;
  });
  const clear = () => {
    kept = { rows: [], first: kept.first + kept.rows.length, gone: 0, dropped: {} };
    setNewest(kept);
    if (frozen) freeze(kept);
    choose(null);
  };
  /** @param {Record<string, string>} change */
  const put = (change) => go("inspector", { app, ...filter, ...change }, true);
  const lost = Object.entries(view.dropped);
  const isFiltered = what || channel || socket || user || ip;
  const fresh = newest.first + newest.rows.length - view.first - view.rows.length;
  const actions = html`<button type="button" class="pause" aria-pressed=${Boolean(frozen)} disabled=${error && !frozen} onClick=${() => freeze(frozen ? null : kept)}>
      ${frozen ? `Resume${fresh > 0 ? ` (${whole(fresh)} new)` : ""}` : "Pause"}
    </button>
    <button type="button" disabled=${!view.rows.length} onClick=${clear}>Clear</button>
    <button type="button" disabled=${!view.rows.length} onClick=${() => save(view.rows)}>Export</button>
    <button type="button" aria-pressed=${follows} onClick=${() => follow(!follows)}>Follow the newest</button>`;
  const listed = view.gone ? `The last ${whole(view.rows.length)} of ${whole(view.rows.length + view.gone)} events` : count(view.rows.length, "event");
  const counted = lost.reduce((sum, [, n]) => sum + n, 0);
  const tally = listed + (counted ? `, and ${whole(counted)} too many to list, counted below` : "") + (frozen ? ", paused" : "");
  return html`<${Screen} title="Inspector" lead="What happens in the app now, on all workers. The server does not store these events." actions=${actions}>
    <div class="fields">
      <${Filter} label="Channel or its beginning" search value=${channel} put=${(/** @type {string} */ text) => put({ channel: text })} hint="orders-*" />
      <${Filter} label="Socket or client id" value=${socket} put=${(/** @type {string} */ text) => put({ socket: text })} />
      <${Filter} label="User" value=${user} put=${(/** @type {string} */ text) => put({ user: text })} />
      <${Filter} label="Address" value=${ip} put=${(/** @type {string} */ text) => put({ ip: text })} />
      <${Check} label="With data" value=${Boolean(data)} put=${(/** @type {boolean} */ is) => put({ data: is ? "1" : "" })} />
    </div>
    <fieldset class="choices types">
      <legend>Show only</legend>
      ${TYPES.map(
        (one) =>
          html`<${Check}
            key=${one}
            label=${one}
            value=${types.includes(one)}
            put=${(/** @type {boolean} */ is) => put({ what: TYPES.filter((other) => (other === one ? is : types.includes(other))).join(",") })}
          />`,
      )}
      <p class="note">“cut-off”: the server has ended a connection. “asked”: the app’s backend has permitted or refused a request of a client.</p>
    </fieldset>
    ${error && html`<${Problem} error=${new Error(error)} />`}
    <p class="note tally" role="status" aria-live="off">${live(tally)}</p>
    <div class="inspector">
      <${Rows} view=${view} chosen=${chosen} choose=${choose} put=${put} follows=${follows} follow=${follow} idle=${error ? "Not watching: see the message above. The console tries again every 5 seconds." : idle(Boolean(frozen), state, isFiltered, app, useStore(away) && worker)} />
      <aside class="panel detail" aria-label="Details of the event">
        ${chosen ? html`<${Detail} app=${app} row=${chosen} put=${put} />` : html`<p class="note">Select an event to see all its fields.</p>`}
      </aside>
    </div>
    ${counted > 0 && html`<p class="note">Not listed, because more arrived than the server sends to one tab: ${lost.map(([name, n]) => `${whole(n)} ${name}`).join(", ")}. A filter makes them fewer.</p>`}
  <//>`;
}

/**
 * Orders the last rows by time, because the events of two workers may arrive in another order.
 * @param {any[]} rows
 */
function ordered(rows) {
  const start = Math.max(0, rows.length - MAX_ROWS);
  return [...rows.slice(0, start), ...rows.slice(start).sort((a, b) => a.at - b.at)];
}

/** @param {boolean} paused @param {string} state @param {unknown} isFiltered @param {string} app @param {string} only the worker that is watched alone; "" if all are */
function idle(paused, state, isFiltered, app, only) {
  if (paused) return "Paused. “Resume” shows the new events.";
  if (state !== "open") return "Connecting …";
  if (only) return `Watching ${only} only, because the broker is away. Nothing has happened there yet.`;
  if (isFiltered) return "Watching. Nothing matches the filter yet.";
  return html`Watching. Nothing has happened yet: connect a client, or <a href=${link("events", { app })}>publish an event</a>.`;
}

/**
 * The rows, the newest at the bottom. Only the visible ones are in the document.
 * @param {{view: {rows: any[], first: number}, chosen: any, choose: (row: any) => void, put: (change: Record<string, string>) => void, follows: boolean, follow: (is: boolean) => void, idle: any}} props
 */
function Rows({ view, chosen, choose, put, follows, follow, idle }) {
  const box = useRef(/** @type {HTMLDivElement | null} */ (null));
  const [top, setTop] = useState(0);
  const [height, setHeight] = useState(480);
  const row = NARROW.matches ? TALL_ROW : ROW;
  const before = useRef(view.first);
  const space = useRef("");
  useLayoutEffect(() => {
    const element = /** @type {HTMLDivElement} */ (box.current);
    if (follows) element.scrollTop = element.scrollHeight;
    else if (view.first > before.current) element.scrollTop -= (view.first - before.current) * row;
    before.current = view.first;
  }, [view, follows]);
  useEffect(() => {
    const element = /** @type {HTMLDivElement} */ (box.current);
    const observer = new ResizeObserver(() => setHeight(element.clientHeight));
    observer.observe(element);
    return () => observer.disconnect();
  }, []);
  /** @param {any} event */
  const scroll = (event) => {
    const element = event.currentTarget;
    const { scrollTop, scrollHeight, clientHeight } = element;
    setTop(scrollTop);
    const isAtEnd = scrollTop + clientHeight >= scrollHeight - row;
    const isSame = space.current === (space.current = `${scrollHeight} ${clientHeight}`);
    if (isAtEnd || isSame) follow(isAtEnd);
    else if (follows) element.scrollTop = scrollHeight; // the browser has scrolled, because the list has another size
  };
  /** @param {string} key @param {string | undefined} text */
  const filter = (key, text) => text && html`<button type="button" class="plain-button name" dir=${direction(text)} title=${`Filter by ${plain(text)}`} onClick=${() => put({ [key]: text })}><${Text} of=${text} /></button>`;
  const start = Math.max(0, Math.floor(top / row) - SPARE);
  const shown = view.rows.slice(start, start + Math.ceil(height / row) + 2 * SPARE);
  return html`<div class="log">
    <div class="rows" ref=${box} onScroll=${scroll} tabindex="0" role="region" aria-label="Events, the newest at the bottom">
      <div class="log-head" aria-hidden="true"><span class="time">Time</span><span class="what">What</span><span class="on">Channel</span><span class="about">Event or reason</span><span class="by">Socket or client id</span><span class="number size">Size</span></div>
      ${!view.rows.length && html`<p class="idle">${idle}</p>`}
      <div class="track" ref=${(/** @type {HTMLElement | null} */ one) => one && (one.style.height = `${view.rows.length * row}px`)} role="list">
        ${shown.map(
          (one, i) => html`<div
            key=${one[NUMBER]}
            role="listitem"
            class=${one === chosen ? "line chosen" : "line"}
            ref=${(/** @type {HTMLElement | null} */ element) => element && (element.style.transform = `translateY(${(start + i) * row}px)`)}
          >
            <span class="time">${clock(one.at, true)}</span>
            <button type="button" class=${`what ${TONES[one.what] ?? ""}`} aria-pressed=${one === chosen} aria-label=${`${one.what} at ${clock(one.at)}: details`} onClick=${() => choose(one)}>${one.what}</button>
            <span class="on">${filter("channel", one.channel)}</span>
            <span class="about">${summary(one)}</span>
            <span class="by">${filter("socket", one.client_id || one.socket)}</span>
            <span class="number size">${one.size ? bytes(one.size) : ""}</span>
          </div>`,
        )}
      </div>
    </div>
  </div>`;
}

/** @param {any} row */
function summary(row) {
  const text = row.reason || row.event || row.endpoint || (row.code ? `code ${row.code}` : "");
  return text ? html`<span class="name" dir=${direction(String(text))} title=${plain(String(text))}><${Text} of=${text} /></span>` : "";
}

/** @param {{app: string, row: any, put: (change: Record<string, string>) => void}} props */
function Detail({ app, row, put }) {
  /** @param {string} key @param {string} value */
  const filtered = (key, value) =>
    value &&
    html`<span class="mono"><${Text} of=${value} /></span> <button type="button" class="plain-button" onClick=${() => put({ [key]: value })}>filter</button>`;
  return html`<h2 class=${TONES[row.what] ?? ""}>${row.what}</h2>
    <dl class="facts">
      <div><dt>Time</dt><dd>${date(row.at)}.${String(Math.floor((row.at % 1) * 1000)).padStart(3, "0")}</dd></div>
      ${FIELDS.map(([key, label]) => {
        const value = row[key];
        if (value === undefined || value === null || value === "") return null;
        return html`<div key=${key} class=${key === "reason" || key === "remedy" ? "whole" : ""}><dt>${label}</dt><dd>${
          key in FILTERS
            ? filtered(FILTERS[key], String(value))
            : key === "size"
              ? bytes(value)
              : key === "ms"
                ? duration(value / 1000)
                : key === "worker"
                  ? html`<${Node} of=${value} />`
                  : key === "protocol"
                    ? protocolName(value)
                    : html`<${Text} of=${value} />`
        }</dd></div>`;
      })}
    </dl>
    ${row.data !== undefined && row.data !== null && html`<${Data} of=${row.data} label="Data of the event" encoding=${row.encoding} />`}
    ${row.cut && html`<p class="note">The beginning of the data.</p>`}
    ${row.link && html`<p class="note">More in ${row.link.split(":~:")[0].replaceAll("-", " ").replace(/#(.)(.*)/, (/** @type {string[]} */ ...[, first, rest]) => `, section “${first.toUpperCase()}${rest}”`)}.</p>`}
    ${row.channel && html`<p><a href=${link("channel", { app, name: row.channel })}>Go to the channel</a></p>`}`;
}

/** @type {(readonly [string, string])[]} */
const FIELDS = [
  ["event", "Event"],
  ["reason", "Reason"],
  ["remedy", "What to do"],
  ["channel", "Channel"],
  ["client_id", "Client id"],
  ["socket", "Socket id"],
  ["user", "User"],
  ["ip", "Address"],
  ["protocol", "Protocol"],
  ["code", "Code"],
  ["request", "Request"],
  ["endpoint", "Endpoint"],
  ["attempt", "Attempt"],
  ["events", "Events"],
  ["size", "Size"],
  ["ms", "Duration"],
  ["worker", "Worker"],
];
/** @type {Record<string, string>} */
const FILTERS = { channel: "channel", client_id: "socket", socket: "socket", user: "user", ip: "ip" };

/** Saves the rows as JSON lines. @param {any[]} rows */
function save(rows) {
  const text = rows.map((row) => JSON.stringify(row) + "\n").join("");
  const url = URL.createObjectURL(new Blob([text], { type: "application/x-ndjson" }));
  const anchor = document.createElement("a");
  anchor.href = url;
  anchor.download = "push1st-events.jsonl";
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
