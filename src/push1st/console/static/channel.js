// @ts-check
/** One channel: its subscriptions, members, last event, workers and history. */
import { html, useState } from "./vendor/htm-preact.js";
import { link, path, useCall } from "./data.js";
import { bytes, count, duration, short } from "./text.js";
import { Data, Empty, Facts, Kind, Missing, Name, Pager, Problem, Loading, Screen, Section, Table, Text, Time } from "./ui.js";

const LIMIT = 50;

/** @param {{params: Record<string, string>}} props */
export function Channel({ params }) {
  const { app, name = "", after = "" } = params;
  const { data, error, reload } = useCall(path(["apps", app, "channels", name]), 5);
  const title = html`<a href=${link("channels", { app })}>All channels</a>`;
  const actions = html`<a class="button" href=${link("connections", { app, channel: name })}>Connections</a>
    <a class="button" href=${link("inspector", { app, channel: name })}>Inspect</a>
    <a class="button" href=${link("events", { app, channel: name })}>Publish</a>`;
  return html`<${Screen} title="Channel" of=${name} lead=${title} actions=${actions}>
    ${error && html`<${Problem} error=${error} again=${reload} />`}
    <${Missing} data=${data} />
    ${!data && !error && html`<${Loading} rows=${2} />`}
    ${data &&
    html`<div class="panel">
        <${Facts}
          pairs=${[
            ["Kind", html`<${Kind} of=${data.kind ?? "–"} />`],
            ["Subscriptions", short(data.subscriptions ?? 0)],
            data.users !== null && data.users !== undefined && ["Members", short(data.users)],
          ]}
        />
      </div>
      ${data.by_worker?.length > 0 && html`<${Section} title="By worker"><${Workers} rows=${data.by_worker} /><//>`}
      ${data.members && html`<${Section} title="Members"><${Members} app=${app} members=${data.members} total=${data.users ?? 0} /><//>`}
      ${data.cache && html`<${Section} title="Last event" lead="A cache channel sends this event to each new subscriber."><${Cached} cache=${data.cache} /><//>`}`}
    <${History} app=${app} name=${name} after=${after} />
  <//>`;
}

/** @param {{rows: any[]}} props */
function Workers({ rows }) {
  return html`<${Table}
    caption="Subscriptions by worker"
    rows=${rows}
    id=${(/** @type {any} */ row) => row.worker}
    columns=${[
      { key: "worker", label: "Worker", show: (/** @type {any} */ row) => html`<${Name} of=${row.worker} />` },
      { key: "subscriptions", label: "Subscriptions", size: "m", number: true, show: (/** @type {any} */ row) => short(row.subscriptions) },
    ]}
  />`;
}

/** @param {{app: string, members: any[], total: number}} props */
function Members({ app, members, total }) {
  return html`<${Table}
      caption="Members"
      rows=${members}
      id=${(/** @type {any} */ row) => row.user_id}
      empty=${html`<${Empty} title="No member is present">A user is a member while one of their connections is subscribed.<//>`}
      columns=${[
        { key: "user_id", label: "User", size: "l", show: (/** @type {any} */ row) => html`<${Name} of=${row.user_id} href=${link("connections", { app, user: row.user_id })} />` },
        { key: "user_info", label: "Information", show: (/** @type {any} */ row) => html`<${Name} of=${row.user_info ? JSON.stringify(row.user_info) : ""} />` },
      ]}
    />
    ${total > members.length && html`<p class="note">The first ${count(members.length, "member")} of ${short(total)}.</p>`}`;
}

/** @param {{cache: any}} props */
function Cached({ cache }) {
  return html`<div class="panel">
    <${Facts} pairs=${[["Event", html`<${Name} of=${cache.event} />`], cache.ttl !== null && cache.ttl !== undefined && ["Expires in", duration(cache.ttl)], cache.bytes && ["Size", bytes(cache.bytes)]]} />
    <${Data} of=${cache.data} label="Data of the last event" encoding=${cache.encoding} />
  </div>`;
}

/** @param {{app: string, name: string, after: string}} props */
function History({ app, name, after }) {
  const { data, error, busy, reload } = useCall(path(["apps", app, "channels", name, "history"], { after, limit: LIMIT }));
  const [open, setOpen] = useState(/** @type {string | number | null} */ (null));
  if (error?.status === 404) {
    return html`<${Section} title="History"><${Empty} title="This channel keeps no history"><${Text} of=${error.message} /><//><//>`;
  }
  const items = data?.items ?? data?.events;
  return html`<${Section} title="History" actions=${html`<button type="button" onClick=${reload}>Refresh</button>`}>
    <${Table}
      caption="Kept messages"
      rows=${items}
      id=${(/** @type {any} */ row) => row.offset}
      busy=${busy && !data}
      error=${error}
      again=${reload}
      bones=${3}
      empty=${html`<${Empty} title="The history is empty">Messages appear here after they are published, until they expire.<//>`}
      columns=${[
        { key: "offset", label: "Offset", size: "s", number: true },
        { key: "at", label: "Time", size: "s", show: (/** @type {any} */ row) => html`<${Time} at=${row.at ?? row.time} />` },
        {
          key: "event",
          label: "Event",
          show: (/** @type {any} */ row) => html`<${Name} of=${row.event ?? row.name} />`,
        },
        { key: "bytes", label: "Size", size: "s", number: true, show: (/** @type {any} */ row) => bytes(row.bytes ?? row.size ?? String(row.data ?? "").length) },
        {
          key: "data",
          label: "Data",
          size: "s",
          show: (/** @type {any} */ row) =>
            html`<button type="button" class="cell-button" aria-expanded=${open === row.offset} onClick=${() => setOpen(open === row.offset ? null : row.offset)}>
              ${open === row.offset ? "Hide" : "Show"}
            </button>`,
        },
      ]}
    />
    ${open !== null &&
    items
      ?.filter((/** @type {any} */ row) => row.offset === open)
      .map((/** @type {any} */ row) => html`<${Data} key=${row.offset} of=${row.data} label=${`Data at offset ${row.offset}`} encoding=${row.encoding} />`)}
    <${Pager}
      data=${data}
      shown=${items?.length ?? 0}
      noun=${items?.length === 1 ? "message" : "messages"}
      isFirst=${!after}
      first=${link("channel", { app, name })}
      next=${data?.next ? link("channel", { app, name, after: data.next }) : null}
    />
  <//>`;
}
