// @ts-check
/** The list of apps. */
import { html, useState } from "./vendor/htm-preact.js";
import { go, link, path, useCall } from "./data.js";
import { plain, short, whole } from "./text.js";
import { Badge, Dialog, Empty, Endpoint, Facts, Filter, Loading, Missing, Name, Pager, Problem, Screen, Table, Text } from "./ui.js";

const LIMIT = 50;

/** @param {{params: Record<string, string>}} props */
export function Apps({ params }) {
  const { search = "", after = "" } = params;
  const { data, error, busy, reload } = useCall(path(["apps"], { search, after, limit: LIMIT }), 5);
  const [shown, show] = useState(/** @type {any} */ (null));
  const apps = data?.apps;
  return html`<${Screen} title="Apps" lead="An app is a tenant of the server: its clients, channels and limits are separate from those of other apps. The numbers of events and messages are totals since the workers started.">
    <div class="fields">
      <${Filter} label="Id, name or key" search wide value=${search} put=${(/** @type {string} */ text) => go("apps", { search: text }, true)} />
    </div>
    <${Missing} data=${data} />
    ${data?.away && html`<p class="note">Only the worker ${data.from} has answered: the figures are its own.</p>`}
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
      data=${data && { ...data, away: "" }}
      shown=${apps?.length ?? 0}
      total=${data?.found}
      noun=${data?.found === 1 ? "app" : "apps"}
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

/** @param {{app: any, close: () => void}} props */
function Detail({ app: listed, close }) {
  const { data, error, reload } = useCall(path(["apps", listed.id]));
  const app = data ?? listed;
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
    ${data?.away && html`<p class="note">Only the worker ${data.from} has answered: the figures are its own.</p>`}
    ${error && html`<${Problem} error=${error} again=${reload} />`}
    ${!data && !error && html`<${Loading} />`}
    ${data?.unlocated_after && html`<p class="note">The console shows the places in files only for the first ${whole(data.unlocated_after)} apps.</p>`}
    ${data && ["Limits", "Settings"].map((title) => html`<h3>${title}</h3><${Settings} of=${data.settings.filter((/** @type {any} */ one) => one.key.startsWith("limits.") === (title === "Limits"))} />`)}
  <//>`;
}

/** Settings of an app, with their keys and places in the configuration. @param {{of: any[]}} props */
function Settings({ of }) {
  return html`<dl class="settings">
    ${of.map(
      ({ key, label, lines, origin }) => html`<div key=${key} class=${lines.some((/** @type {any} */ line) => line.endpoint) ? "whole" : ""}>
        <dt>${label}<br /><code class="faint">${key}</code></dt>
        <dd>
          ${lines.map((/** @type {any} */ line) => html`<p>${line.endpoint && html`<${Endpoint} of=${line.endpoint} /><br />`}<${Text} of=${line.text} /></p>`)}
          ${origin && html`<span class="faint">set in <code><${Text} of=${origin} /></code></span>`}
        </dd>
      </div>`,
    )}
  </dl>`;
}

/** @param {unknown} value */
function given(value) {
  return value !== null && value !== undefined;
}

/** @param {number | null} value */
export function figure(value) {
  return value === null || value === undefined ? html`<span title="too many to count">–</span>` : short(value);
}
