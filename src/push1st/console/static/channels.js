// @ts-check
/** The channels of an app that have subscribers. */
import { html, useMemo } from "./vendor/htm-preact.js";
import { go, link, path, useCall } from "./data.js";
import { short } from "./text.js";
import { Choice, Empty, Filter, Kind, Missing, Name, Pager, Screen, Table, Text, Unfound } from "./ui.js";

const LIMIT = 50;
export const KINDS = /** @type {const} */ ([
  ["", "all kinds"],
  ["public", "public"],
  ["private", "private"],
  ["presence", "presence"],
  ["encrypted", "encrypted"],
  ["cache", "cache"],
  ["protected", "protected"],
]);

/** @param {{name: string}} a @param {{name: string}} b */
function byName(a, b) {
  return a.name < b.name ? -1 : 1;
}

/** @param {{params: Record<string, string>}} props */
export function Channels({ params }) {
  const { app, prefix = "", kind = "", after = "" } = params;
  const { data, error, busy, reload } = useCall(path(["apps", app, "channels"], { prefix, kind, after, limit: LIMIT }), 5);
  const channels = useMemo(() => data?.channels.slice().sort(byName), [data]);
  /** @param {Record<string, string>} change */
  const put = (change) => go("channels", { app, prefix, kind, ...change }, true);
  const isFiltered = prefix || kind;
  return html`<${Screen} title="Channels" lead="The channels that have subscribers now, on all workers. MQTT filters with wildcards do not count.">
    <div class="fields">
      <${Filter} label="Beginning of the name" search wide value=${prefix} put=${(/** @type {string} */ text) => put({ prefix: text })} />
      <${Choice} label="Kind" value=${kind} put=${(/** @type {string} */ value) => put({ kind: value })} options=${KINDS} />
    </div>
    <${Missing} data=${data} />
    ${(after || data?.next) && html`<p class="note">Each page is sorted, but the pages are in no order.</p>`}
    <${Table}
      caption="Channels"
      rows=${channels}
      id=${(/** @type {any} */ row) => row.name}
      busy=${busy && !data}
      error=${error}
      again=${reload}
      empty=${data?.complete === false
        ? html`<${Unfound} of="channels" />`
        : isFiltered
          ? html`<${Empty} title="No channel matches" alone="No channel of this worker matches">A channel appears here while it has a subscriber. Change the filter, or clear it.<//>`
          : html`<${Empty} title="No channel has a subscriber" alone="No channel has a subscriber on this worker">
              Subscribe a client, then its channel appears here.
            <//>`}
      columns=${[
        { key: "name", label: "Channel", show: (/** @type {any} */ row) => html`<${Name} of=${row.name} href=${link("channel", { app, name: row.name })} />` },
        { key: "kind", label: "Kind", size: "xl", show: (/** @type {any} */ row) => html`<${Kind} of=${row.kind} />` },
        { key: "subscriptions", label: "Subscriptions", size: "m", number: true, show: (/** @type {any} */ row) => short(row.subscriptions) },
        { key: "users", label: "Members", size: "s", number: true, show: (/** @type {any} */ row) => (typeof row.users === "number" ? short(row.users) : html`<span class="faint">${row.kind.startsWith("presence") ? "unknown" : "–"}</span>`) },
      ]}
    />
    <${Pager}
      data=${data}
      shown=${channels?.length ?? 0}
      noun=${channels?.length === 1 ? "channel" : "channels"}
      isFirst=${!after}
      first=${link("channels", { app, prefix, kind })}
      next=${data?.next ? link("channels", { app, prefix, kind, after: data.next }) : null}
    />
    ${prefix && channels && !channels.some((/** @type {any} */ one) => one.name === prefix) && html`<p class="note">A channel without subscribers is not listed, but may keep a history: <a href=${link("channel", { app, name: prefix, view: "history" })}><${Text} of=${prefix} /></a></p>`}
  <//>`;
}
