// @ts-check
/** The list of apps. */
import { html } from "./vendor/htm-preact.js";
import { go, link, path, useCall } from "./data.js";
import { count, short } from "./text.js";
import { Badge, Empty, Filter, Missing, Name, Pager, Screen, Table } from "./ui.js";

const LIMIT = 50;

/** @param {{params: Record<string, string>}} props */
export function Apps({ params }) {
  const { search = "", after = "" } = params;
  const { data, error, busy, reload } = useCall(path(["apps"], { search, after, limit: LIMIT }), 5);
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
      columns=${COLUMNS}
      empty=${search
        ? html`<${Empty} title="No app matches">Search for the beginning of an id, a name or a key, or clear the search.<//>`
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
  <//>`;
}

/** @type {import("./ui.js").Column[]} */
const COLUMNS = [
  { key: "id", label: "App", show: (app) => html`<${Name} of=${app.id} href=${link("channels", { app: app.id })} />` },
  { key: "name", label: "Name", size: "m", show: (app) => html`<${Name} of=${app.name} />` },
  { key: "enable", label: "State", size: "s", show: (app) => (app.enable ? html`<${Badge} kind="ok">enabled<//>` : html`<${Badge} kind="warn">disabled<//>`) },
  { key: "key", label: "Key", size: "m", show: (app) => html`<${Name} of=${app.key} />` },
  {
    key: "secrets",
    label: "Secrets",
    size: "m",
    show: (app) => html`<span title=${`${count(app.secrets.length, "secret")} of ${app.secrets.join(", ")} bytes`}>set, ${app.secrets.join(" + ")} bytes</span>`,
  },
  { key: "connections", label: "Connections", size: "s", number: true, show: (app) => figure(app.connections) },
  { key: "channels", label: "Channels", size: "s", number: true, show: (app) => figure(app.channels) },
  { key: "events_in", label: "Events in", size: "s", number: true, show: (app) => figure(app.events_in) },
  { key: "messages_out", label: "Messages out", size: "s", number: true, show: (app) => figure(app.messages_out) },
];

/** @param {number | null} value */
export function figure(value) {
  return value === null || value === undefined ? html`<span title="too many to count">–</span>` : short(value);
}
