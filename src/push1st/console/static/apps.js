// @ts-check
/** The list of apps. */
import { html, useState } from "./vendor/htm-preact.js";
import { go, link, path, useCall } from "./data.js";
import { bytes, plain, short, whole } from "./text.js";
import { Badge, Dialog, Empty, Endpoint, Facts, Filter, Loading, Missing, Name, Pager, Problem, Screen, Table, Text } from "./ui.js";

const LIMIT = 50;

/** @param {{params: Record<string, string>}} props */
export function Apps({ params }) {
  const { search = "", after = "" } = params;
  const { data, error, busy, reload } = useCall(path(["apps"], { search, after, limit: LIMIT }), 5);
  const [shown, show] = useState(/** @type {any} */ (null));
  const apps = data?.apps;
  return html`<${Screen} title="Apps" lead="An app is a tenant of the server: its clients, channels and limits are separate from those of other apps.">
    <div class="fields">
      <${Filter} label="Id, name or key" search wide value=${search} put=${(/** @type {string} */ text) => go("apps", { search: text }, true)} />
    </div>
    <${Missing} data=${data} />
    <${Table}
      caption="Apps"
      rows=${apps}
      id=${(/** @type {any} */ app) => app.id}
      busy=${busy && !data}
      error=${error}
      again=${reload}
      columns=${columns(show)}
      empty=${search
        ? html`<${Empty} title="No app matches">Search for a part of an id, a name or a key, or clear the search.<//>`
        : html`<${Empty} title="This server has no app">Add one with <code>push1st app add</code>, and reload the server with <code>push1st reload</code>.<//>`}
    />
    <${Pager}
      data=${data}
      shown=${apps?.length ?? 0}
      noun=${apps?.length === 1 ? "app" : "apps"}
      isFirst=${!after}
      first=${link("apps", { search })}
      next=${data?.next ? link("apps", { search, after: data.next }) : null}
    />
    ${shown && html`<${Detail} app=${shown} close=${() => show(null)} />`}
  <//>`;
}

/** @param {(app: any) => void} show @returns {import("./ui.js").Column[]} */
const columns = (show) => [
  { key: "id", label: "App", show: (app) => html`<${Name} of=${app.id} href=${link("channels", { app: app.id })} />` },
  { key: "name", label: "Name", show: (app) => html`<${Name} of=${app.name} />` },
  { key: "enable", label: "State", size: "s", show: (app) => (app.enable ? html`<${Badge} kind="ok">enabled<//>` : html`<${Badge} kind="warn">disabled<//>`) },
  { key: "connections", label: "Connections", size: "s", number: true, show: (app) => figure(app.connections) },
  { key: "events_in", label: "Events in", size: "s", number: true, show: (app) => figure(app.events_in) },
  { key: "messages_out", label: "Messages out", size: "s", number: true, show: (app) => figure(app.messages_out) },
  {
    key: "more",
    label: "Details",
    size: "act",
    show: (app) => html`<button type="button" class="cell-button" aria-label=${`Show the app ${plain(app.id)}`} onClick=${() => show(app)}>Show</button>`,
  },
];

/** The words for the limits, and their unit. Of these, 0 stands for no limit: `free`. @type {Record<string, [string, string, string?]>} */
const LIMITS = {
  connections: ["Connections at the same time", "", "free"],
  subscriptions: ["Subscriptions of a connection", "", "free"],
  members: ["Users on a presence channel", "", "free"],
  payload: ["Data of an event", ""],
  "channel-name": ["Length of a channel name", " characters for Pusher clients and signed API calls; 255 bytes for other clients, unsigned calls and this console"],
  "event-name": ["Length of an event name", " characters"],
  "channels-per-event": ["Channels to which one API call publishes", ""],
  batch: ["Events in one API call (batch)", ""],
  "client-events": ["Client events of a connection", " a second", "free"],
  publishes: ["Events that API calls publish", " a second", "free"],
  reads: ["API calls that only read", " a second", "free"],
};
/** @type {Record<string, string>} */
const SETTINGS = {
  channels: "Kinds of channels that clients may use",
  origins: "Web pages that may connect",
  webhooks: "Webhooks",
  authorize: "Backends that decide about clients",
  history: "Channels that keep a history",
  "options.client-messages": "Clients may publish",
  "options.subscription-count": "Subscribers get the number of subscribers",
  "options.authorized-only": "Clients must sign in",
};
const WITHOUT = ["enable", "name", "key", "secret", "options.statistic"];

/** @param {{app: any, close: () => void}} props */
function Detail({ app: listed, close }) {
  const { data, error, reload } = useCall(path(["apps", listed.id]));
  const app = data ?? listed;
  const keys = (data?.settings ?? []).filter((/** @type {any} */ one) => !WITHOUT.includes(one.key));
  /** @param {boolean} are */
  const limits = (are) => keys.filter((/** @type {any} */ one) => one.key.startsWith("limits.") === are);
  return html`<${Dialog}
    title="App"
    close=${close}
    actions=${html`<a class="button" href=${link("channels", { app: app.id })}>Channels</a>
      <a class="button" href=${link("connections", { app: app.id })}>Connections</a>
      <button type="button" onClick=${close}>Close</button>`}
  >
    <${Facts}
      pairs=${[
        ["Id", html`<${Name} of=${app.id} />`],
        ["Name", html`<${Text} of=${app.name || "–"} />`],
        ["Key", html`<${Name} of=${app.key} />`],
        ["Secrets", app.secrets.length ? `set, ${app.secrets.join(" and ")} bytes` : "none"],
        ["Channels", data ? (data.distinct_channels === null ? "unknown" : data.has_more_channels ? `more than ${whole(data.distinct_channels)}` : whole(data.distinct_channels)) : "…"],
        ["Subscriptions", figure(app.subscriptions)],
        given(app.refusals) && ["Refusals", figure(app.refusals)],
        app.source && ["Source", html`<${Name} of=${app.source} />`],
      ]}
    />
    ${error && html`<${Problem} error=${error} again=${reload} />`}
    ${!data && !error && html`<${Loading} />`}
    ${data && html`<h3>Limits</h3><${Settings} of=${limits(true)} app=${app} /><h3>Settings</h3><${Settings} of=${limits(false)} app=${app} />`}
  <//>`;
}

/** Keys of an app with their words and values. @param {{of: any[], app: any}} props */
function Settings({ of, app }) {
  return html`<dl class="settings">
    ${of.map(({ key, value, origin }) => {
      const name = key.replace("limits.", "");
      const limit = key === name ? null : LIMITS[name];
      const label = limit?.[0] ?? SETTINGS[key];
      return html`<div key=${key}>
        <dt>${label}${label && html`<br />`}<code class="faint">${key}</code></dt>
        <dd>${limit ? shownLimit(name, value, app) : shown(key, value)}${origin && origin !== "default" && html`<br /><span class="faint">set in <code><${Text} of=${origin} /></code></span>`}</dd>
      </div>`;
    })}
  </dl>`;
}

/** @param {string} name @param {number} value @param {any} app */
function shownLimit(name, value, app) {
  const [, unit, isFree] = LIMITS[name] ?? ["", ""];
  const text = isFree && !value ? "no limit" : name === "payload" ? bytes(value) : whole(value) + unit;
  return name === "connections" ? html`${figure(app.connections)} ${value ? "of" : "now,"} ${text}` : text;
}

/** @param {string} key @param {any} value @returns {import("./ui.js").Child} */
function shown(key, value) {
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (value === null || value === "" || value.length === 0) return key === "origins" ? "all" : "none";
  if (!Array.isArray(value)) return html`<${Text} of=${value} />`;
  if (typeof value[0] !== "object") return html`<${Text} of=${value.join(", ")} />`;
  return value.map((one) => html`<p>${one.url && html`<${Endpoint} of=${one.url} /><br />`}<${Text} of=${parts(one)} /></p>`);
}

/** Returns the settings of an endpoint, or of a part of the history, in one line. @param {Record<string, any>} one */
function parts(one) {
  const found = Object.entries(one).filter(([name, value]) => name !== "url" && value !== null && value.length !== 0);
  return found.map(([name, value]) => `${name.replaceAll("_", "-")}: ${Array.isArray(value) ? value.join(", ") : value}`).join(" · ");
}

/** @param {unknown} value */
function given(value) {
  return value !== null && value !== undefined;
}

/** @param {number | null} value */
export function figure(value) {
  return value === null || value === undefined ? html`<span title="too many to count">–</span>` : short(value);
}
