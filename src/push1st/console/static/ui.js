// @ts-check
/** The parts that all screens share: text, tables, fields, dialogs and the states of a screen. */
import { html, useEffect, useLayoutEffect, useRef, useState } from "./vendor/htm-preact.js";
import { away, link, route, serverTime, useNodeName, useStore } from "./data.js";
import { bytes, clock, date, direction, duration, escaped, pieces, plain, pretty, whole } from "./text.js";

/** @typedef {import("./vendor/htm-preact.js").Child} Child */
/** @typedef {import("./data.js").CallError} CallError */

const CUT = 20_000;

// Text

/**
 * Text of a client or a file. Invisible characters are shown as escapes, and the text cannot reorder its neighbours.
 * @param {{of: unknown, lines?: boolean}} props
 */
export function Text({ of, lines = false }) {
  const found = pieces(String(of ?? ""), lines);
  const dir = lines ? "ltr" : direction(String(of ?? ""));
  return html`<bdi dir=${dir}
    >${found.map((piece, i) => (i % 2 ? html`<span class="escape" title="a character that is not visible">${escaped(piece)}</span>` : piece))}</bdi
  >`;
}

/**
 * A name on one line; its tooltip has the whole name.
 * @param {{of: unknown, href?: string, label?: string}} props
 */
export function Name({ of, href, label }) {
  const text = String(of ?? "");
  if (!text) return html`<span class="faint">${label ?? "–"}</span>`;
  return href
    ? html`<a class="name" dir=${direction(text)} href=${href} title=${plain(text)}><${Text} of=${text} /></a>`
    : html`<span class="name" dir=${direction(text)} title=${plain(text)}><${Text} of=${text} /></span>`;
}

/** The URL of an endpoint. The server never sends its user and its query, because they may be secret. @param {{of: string}} props */
export function Endpoint({ of }) {
  const hidden = [of.includes("…@") && "user", of.endsWith("?…") && "query"].filter(Boolean).join(" and ");
  return html`<${Name} of=${of.replace("…@", "").replace(/\?…$/, "")} />${hidden && html` <span class="faint">(${hidden} hidden)</span>`}`;
}

/** A node by its name for people; its tooltip has the id. @param {{of: string, label?: string}} props */
export function Node({ of, label }) {
  const name = useNodeName(of);
  return of ? html`<span class="name" title=${of}><${Text} of=${name} /></span>` : html`<span class="faint">${label ?? "–"}</span>`;
}

/** A time. @param {{at: number | null | undefined, day?: boolean}} props */
export function Time({ at, day = false }) {
  if (at === null || at === undefined) return html`<span class="faint">–</span>`;
  return html`<time datetime=${new Date(at * 1000).toISOString()} title=${date(at)}>${day ? date(at) : clock(at)}</time>`;
}

/** The duration since a time. @param {{at: number | null | undefined}} props */
export function Since({ at }) {
  if (at === null || at === undefined) return html`<span class="faint">–</span>`;
  const text = duration(Math.max(0, serverTime() - at));
  return html`<time key=${text} datetime=${new Date(at * 1000).toISOString()} title=${date(at)}>${text}</time>`;
}

/** @param {{kind: "ok" | "warn" | "bad" | "plain", children?: Child}} props */
export function Badge({ kind, children }) {
  return html`<span class=${`badge ${kind}`}>${children}</span>`;
}

/** @type {Record<string, "ok" | "warn" | "bad">} */
const STATES = { ready: "ok", draining: "warn", "no answer": "bad" };

/** The state of a worker. @param {{of: string}} props */
export function State({ of }) {
  return html`<${Badge} kind=${STATES[of] ?? "plain"}>${of}<//>`;
}

/** The kind of a channel. @param {{of: string}} props */
export function Kind({ of }) {
  return html`<span class="kind">${of}</span>`;
}

/**
 * Data of an event: JSON with indentation, in a region of its own that scrolls.
 * @param {{of: unknown, label: string, encoding?: string | null}} props
 */
export function Data({ of, label, encoding }) {
  const [all, showAll] = useState(false);
  const text = typeof of === "string" ? (encoding ? of : pretty(of)) : JSON.stringify(of, null, 2) ?? "";
  const shown = all ? text : text.slice(0, CUT);
  return html`<div class="data">
    <pre tabindex="0" role="region" aria-label=${label}><${Text} of=${shown} lines /></pre>
    ${encoding && html`<p class="note">These bytes are not text; this is their ${encoding}.</p>`}
    ${shown.length < text.length &&
    html`<button type="button" onClick=${() => showAll(true)}>Show all ${bytes(text.length)}</button>`}
  </div>`;
}

/** Pairs of a term and a value, and whether the value takes the whole width. @param {{pairs: ([string, Child, boolean?] | null | false | undefined | "")[]}} props */
export function Facts({ pairs }) {
  return html`<dl class="facts">
    ${pairs.map((pair) => pair && html`<div key=${pair[0]} class=${pair[2] ? "whole" : ""}><dt>${pair[0]}</dt><dd>${pair[1]}</dd></div>`)}
  </dl>`;
}

// Screens

/** Whether no screen was shown yet. Each further screen takes the focus, so that a screen reader reads its heading. */
let isFirst = true;

/**
 * A screen: its heading, a sentence about it, and its contents.
 * @param {{title: string, of?: string, lead?: Child, actions?: Child, children?: Child}} props
 */
export function Screen({ title, of, lead, actions, children }) {
  const heading = useRef(/** @type {HTMLElement | null} */ (null));
  useLayoutEffect(() => {
    if (!isFirst) heading.current?.focus({ preventScroll: true });
    isFirst = false;
  }, []);
  useLayoutEffect(() => {
    document.title = `${of ? plain(of) + " · " : ""}${title} · Push1st`;
  }, [title, of]);
  const isAway = useStore(away);
  return html`<header class="head">
      <div class="titles">
        <h1 tabindex="-1" ref=${heading}>${title}${of && html` <span class=${`of name${of.length > 60 ? " long" : ""}`} title=${plain(of)}><${Text} of=${of} /></span>`}</h1>
        ${lead && html`<p class="lead">${isAway && typeof lead === "string" ? lead.replace("on all workers", "on one worker only") : lead}</p>`}
      </div>
      ${actions && html`<div class="actions">${actions}</div>`}
    </header>
    ${children}`;
}

/** A part of a screen. @param {{title: string, lead?: Child, actions?: Child, children?: Child}} props */
export function Section({ title, lead, actions, children }) {
  const id = "s-" + title.toLowerCase().replace(/\W+/g, "-");
  return html`<section aria-labelledby=${id}>
    <div class="head2"><h2 id=${id}>${title}</h2>${actions && html`<div class="actions">${actions}</div>`}</div>
    ${lead && html`<p class="note">${lead}</p>`}
    ${children}
  </section>`;
}

/**
 * The error of a rejected request, and a button for another try if it could succeed.
 * @param {{error: CallError | Error, again?: () => void}} props
 */
export function Problem({ error, again }) {
  const { screen, params } = useStore(route);
  const status = "status" in error ? error.status : 0;
  const isFinal = status >= 400 && status < 500 && status !== 429;
  const isUnknown = error.message.startsWith("there is no app");
  if (again && error.message.startsWith("the broker is away")) {
    return html`<${Empty} title="Unknown while the broker is away">The broker keeps this list. The list appears here as soon as the broker is back.<//>`;
  }
  return html`<div class="problem" role="alert">
    <p><${Text} of=${error.message} /></p>
    ${isUnknown && html`<a class="button" href=${link("apps")}>Choose an app</a>`}
    ${isFinal && !isUnknown && params.after && html`<a class="button" href=${link(screen, { ...params, after: "" })}>First page</a>`}
    ${again && !isFinal && html`<button type="button" onClick=${again}>Try again</button>`}
  </div>`;
}

/**
 * The text in place of an empty list. alone: the title while the broker is away, if the list then has the entries of one worker.
 * @param {{title: string, alone?: string, children?: Child}} props
 */
export function Empty({ title, alone, children }) {
  const isAlone = useStore(away) && alone;
  return html`<div class="empty">
    <p class="strong">${isAlone ? alone : title}</p>
    <p>${isAlone ? "The rest is unknown while the broker is away." : children}</p>
  </div>`;
}

/** The text in place of a page of a search that has found nothing yet. @param {{of: string}} props */
export function Unfound({ of }) {
  return html`<${Empty} title="Nothing found yet">None was found for this page. Select “Continue search” to examine more ${of}.<//>`;
}

/** Rows in place of those that are about to arrive. @param {{rows?: number}} props */
export function Loading({ rows = 5 }) {
  return html`<div class="loading" role="status" aria-label="Loading">${Array.from({ length: rows }, () => html`<span class="bone"></span>`)}</div>`;
}

/**
 * The workers that have not answered.
 * @param {{data: any}} props
 */
export function Missing({ data }) {
  const names = data?.missing ?? [];
  if (!names.length) return null;
  if (names.length === 1) return html`<p class="problem" role="status">The worker <${Node} of=${names[0]} /> has not answered, so its part is missing here.</p>`;
  return html`<p class="problem" role="status">
    ${whole(names.length)} workers have not answered, so their parts are missing here:
    ${names.slice(0, 10).map((/** @type {string} */ name) => html` <${Node} key=${name} of=${name} />`)}${names.length > 10 && " …"}
  </p>`;
}

/**
 * Links to the parts of a screen.
 * @param {{label: string, now: string, tabs: (readonly [string, string, string] | null | false)[]}} props tabs: key, text, address
 */
export function Tabs({ label, now, tabs }) {
  return html`<nav class="tabs" aria-label=${label}>
    ${tabs.map((tab) => tab && html`<a key=${tab[0]} href=${tab[2]} aria-current=${tab[0] === now ? "page" : undefined}>${tab[1]}</a>`)}
  </nav>`;
}

// Tables

/**
 * @typedef {object} Column
 * @property {string} key
 * @property {string} label
 * @property {string} [size] the width: "name" takes what the others leave; else "xs", "s", "m", "l", "xl", or "act" or "act wide" for buttons and "box" for others
 * @property {boolean} [wrap] whether long values take several lines
 * @property {boolean} [number] whether the values are numbers
 * @property {(row: any) => Child} [show]
 */

/**
 * A table. On narrow screens, its rows become cards.
 * @param {{
 *   caption: string, columns: Column[], rows: any[] | null | undefined, id: (row: any) => string | number,
 *   busy?: boolean, error?: CallError | null, again?: () => void, empty?: Child, bones?: number,
 * }} props
 */
export function Table({ caption, columns, rows, id, busy = false, error, again, empty, bones = 5 }) {
  if (error && !rows) return html`<${Problem} error=${error} again=${again} />`;
  if (!rows) return html`<${Loading} rows=${bones} />`;
  if (!rows.length && empty && !busy) return empty;
  return html`${error && html`<${Problem} error=${error} again=${again} />`}
    <table role="table" class=${busy ? "busy" : ""} aria-busy=${busy}>
      <caption class="hidden">
        ${caption}
      </caption>
      <colgroup>
        ${columns.map(({ key, size = "name" }) => html`<col key=${key} class=${`w-${size}`} />`)}
      </colgroup>
      <thead role="rowgroup">
        <tr role="row">
          ${columns.map(({ key, label, number }) => html`<th key=${key} role="columnheader" scope="col" class=${number ? "number" : ""}>${label}</th>`)}
        </tr>
      </thead>
      <tbody role="rowgroup">
        ${rows.map(
          (row) =>
            html`<tr role="row" key=${id(row)}>
              ${columns.map(
                ({ key, label, size = "name", number, wrap, show }) =>
                  html`<td key=${key} role="cell" data-label=${size.startsWith("act") ? undefined : label} class=${`w-${size}${number ? " number" : ""}${wrap ? " wrap" : ""}`}>${live(show ? show(row) : row[key])}</td>`,
              )}
            </tr>`,
        )}
      </tbody>
    </table>`;
}

/**
 * Makes a new element for each value. A number with more digits begins further left, which is no movement of the layout.
 * @param {Child} value
 */
export function live(value) {
  return typeof value === "string" || typeof value === "number" ? html`<span key=${value}>${value}</span>` : value;
}

/**
 * The way to the next page of a list.
 * @param {{data: any, shown: number, total?: number, noun: string, first: string, next: string | null, isFirst: boolean, whose?: string, also?: string}} props
 *   whose: whose list it is while the broker is away: of one worker, or of its machine; also: what else is unknown then
 */
export function Pager({ data, shown, total = 0, noun, first, next, isFirst, whose = "worker", also = "" }) {
  if (!data || (!shown && isFirst && !next && !data.away)) return null;
  const where = data.away ? ` of the ${whose} ${data.from}; those of other ${whose.split(" ")[0]}s${also} are unknown now` : "";
  const isOnly = isFirst && !next;
  const examined = data.complete === false ? `${whole(data.examined ?? 0)} examined for this page` : "";
  return html`<nav class="pager" aria-label=${`Pages of ${noun}`}>
    <p class="note">${whole(shown)}${total > shown && ` of ${whole(total)}`} ${noun}${where}${isOnly ? "" : " on this page"}${examined && html` · ${examined}`}</p>
    ${!isFirst && html`<a class="button" href=${first}>First page</a>`}
    ${next && html`<a class="button" href=${next}>${shown || data.complete !== false ? "Next page" : "Continue search"}</a>`}
  </nav>`;
}

// Fields

/**
 * A field for a filter. It reports its text as soon as the text has not changed for a moment.
 * @param {{label: string, value: string, put: (text: string) => void, search?: boolean, hint?: string, wide?: boolean}} props
 */
export function Filter({ label, value, put, search = false, hint, wide = false }) {
  const [text, set] = useState(value);
  const timer = useRef(0);
  useEffect(() => set(value), [value]);
  useEffect(() => () => clearTimeout(timer.current), []);
  /** @param {string} next */
  const type = (next) => {
    set(next);
    clearTimeout(timer.current);
    timer.current = setTimeout(() => put(next), 250);
  };
  return html`<label class=${wide ? "field wide" : "field"}>
    <span>${label}</span>
    <input
      type=${search ? "search" : "text"}
      value=${text}
      placeholder=${hint}
      data-search=${search ? "" : undefined}
      autocomplete="off"
      spellcheck=${false}
      onInput=${(/** @type {any} */ event) => type(event.target.value)}
    />
  </label>`;
}

/**
 * A choice.
 * @param {{label: string, value: string, put: (value: string) => void, options: (readonly [string, string])[]}} props
 */
export function Choice({ label, value, put, options }) {
  return html`<label class="field">
    <span>${label}</span>
    <select value=${value} onChange=${(/** @type {any} */ event) => put(event.target.value)}>
      ${options.map(([key, text]) => html`<option key=${key} value=${key} selected=${key === value}>${text}</option>`)}
    </select>
  </label>`;
}

/** @param {{label: string, value: boolean, put: (value: boolean) => void}} props */
export function Check({ label, value, put }) {
  return html`<label class="check">
    <input type="checkbox" checked=${value} onChange=${(/** @type {any} */ event) => put(event.target.checked)} />
    <span>${label}</span>
  </label>`;
}

// Dialogs

/**
 * A modal dialog. The browser keeps the focus in it, and Escape closes it.
 * @param {{title: string, close: () => void, children?: Child, actions?: Child}} props
 */
export function Dialog({ title, close, children, actions }) {
  const box = useRef(/** @type {HTMLDialogElement | null} */ (null));
  const [hasMore, setMore] = useState(false);
  const look = () => {
    const { scrollHeight = 0, scrollTop = 0, clientHeight = 0 } = box.current ?? {};
    setMore(scrollHeight - scrollTop - clientHeight > 8);
  };
  useEffect(look);
  useEffect(() => {
    addEventListener("resize", look);
    return () => removeEventListener("resize", look);
  }, []);
  useLayoutEffect(() => {
    const dialog = box.current;
    dialog?.showModal();
    dialog?.querySelector("h2")?.focus();
    return () => dialog?.close(); // gives the focus back
  }, []);
  return html`<dialog
    ref=${box}
    aria-labelledby="dialog-title"
    onScroll=${look}
    onCancel=${(/** @type {Event} */ event) => {
      event.preventDefault();
      close();
    }}
  >
    <h2 id="dialog-title" tabindex="-1">${title}</h2>
    ${children}
    <div class=${hasMore ? "actions more" : "actions"}>${actions ?? html`<button type="button" onClick=${close}>Close</button>`}</div>
  </dialog>`;
}

/**
 * Requests a confirmation before an action, and shows the error if the server rejects the action.
 * @param {{title: string, verb: string, kind?: string, act: () => Promise<unknown>, close: () => void, children?: Child}} props
 */
export function Confirm({ title, verb, kind = "danger", act, close, children }) {
  const [error, fail] = useState(/** @type {Error | null} */ (null));
  const [busy, work] = useState(false);
  const run = async () => {
    work(true);
    fail(null);
    try {
      await act();
      close();
    } catch (problem) {
      fail(/** @type {Error} */ (problem));
      work(false);
    }
  };
  return html`<${Dialog}
    title=${title}
    close=${close}
    actions=${html`<button type="button" onClick=${close}>Cancel</button>
      <button type="button" class=${kind} disabled=${busy} onClick=${run}>${verb}</button>`}
  >
    ${children} ${error && html`<${Problem} error=${error} />`}
  <//>`;
}
