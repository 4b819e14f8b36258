// @ts-check
/** One channel: its subscriptions, members, last event, workers and history. */
import { html, useState } from "./vendor/htm-preact.js";
import { link, path, useCall } from "./data.js";
import { bytes, count, duration, short, whole } from "./text.js";
import { Data, Dialog, Empty, Facts, Kind, live, Loading, Missing, Name, Node, Pager, Problem, Screen, Section, Table, Tabs, Text, Time } from "./ui.js";

const LIMIT = 50;
/** the characters of a member's information that the list shows */
const MAX_INFO = 500;
/** @type {Record<string, string>} the meanings of the reasons of failed resumptions */
const REASONS = {
  trimmed: " (messages expired)",
  "state-lost": " (the broker lost the history)",
  shared: " (two connections used one page name)",
  "too-large": " (too many missed bytes)",
  "no-history": " (the channel keeps no history)",
};
const VACANT = { subscriptions: 0, users: null, by_worker: [] };

/** @param {{params: Record<string, string>}} props */
export function Channel({ params }) {
  const { app, name = "", view = "now", after = "" } = params;
  const answer = useCall(path(["apps", app, "channels", name]), 5);
  // A channel without subscribers may have a history all the same.
  const isVacant = answer.error?.status === 404;
  const error = isVacant ? null : answer.error;
  const data = isVacant ? VACANT : answer.data;
  const isPresence = data?.kind?.startsWith("presence");
  /** @param {string} one */
  const to = (one) => link("channel", { app, name, view: one });
  return html`<${Screen}
    title="Channel"
    of=${name}
    lead=${html`<a href=${link("channels", { app })}>All channels</a>`}
    actions=${html`<a class="button" href=${link("connections", { app, channel: name })}>Connections</a>
      <a class="button" href=${link("inspector", { app, channel: name })}>Inspect</a>
      <a class="button" href=${link("events", { app, channel: name })}>Publish</a>`}
  >
    ${error && html`<${Problem} error=${error} again=${answer.reload} />`}
    <${Missing} data=${data} />
    ${!data && !error && html`<${Loading} rows=${4} />`}
    ${data &&
    html`<div class="panel">
        <${Facts}
          pairs=${[
            ["Kind", html`<${Kind} of=${data.kind ?? "–"} />`],
            [data.away ? `Subscriptions on ${data.from}` : "Subscriptions", live(short(data.subscriptions ?? 0))],
            isPresence && ["Members", typeof data.users === "number" ? live(short(data.users)) : "unknown"],
          ]}
        />
      </div>
      <${Tabs}
        label="Parts of the channel"
        now=${view}
        tabs=${[["now", "Now", to("")], isPresence && ["members", "Members", to("members")], ["history", "History", to("history")]]}
      />
      ${view === "history"
        ? html`<${History} app=${app} name=${name} after=${after} />`
        : view === "members" && isPresence
          ? data.members
            ? html`<${Members} app=${app} members=${data.members} total=${data.users ?? 0} />`
            : html`<${Empty} title="Unknown while the broker is away">The broker keeps the members. They appear here as soon as the broker is back.<//>`
          : html`<${Section} title="Subscriptions by worker" lead=${data.away && `Only the worker ${data.from} has answered. Those of the others are unknown.`}><${Workers} rows=${data.by_worker ?? []} /><//>
              ${data.cache && html`<${Section} title="Last event" lead="A cache channel sends this event to each new subscriber."><${Cached} cache=${data.cache} /><//>`}`}`}
  <//>`;
}

/** @param {{rows: any[]}} props */
function Workers({ rows }) {
  return html`<${Table}
    caption="Subscriptions by worker"
    rows=${rows}
    id=${(/** @type {any} */ row) => row.worker}
    empty=${html`<${Empty} title="No worker has a subscriber of this channel" alone="This worker has no subscriber of this channel">Subscribe a client to see it here.<//>`}
    columns=${[
      { key: "worker", label: "Worker", show: (/** @type {any} */ row) => html`<${Node} of=${row.worker} />` },
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
        { key: "user_info", label: "Information", wrap: true, show: (/** @type {any} */ row) => html`<${Name} of=${beginning(row.user_info)} label="none" />` },
      ]}
    />
    <div class="pager"><p class="note">${total > members.length ? `The first ${whole(members.length)} of ${count(total, "member")}` : count(total, "member")}</p></div>`;
}

/** Returns the information about a member as JSON, or its beginning. @param {any} info */
function beginning(info) {
  const text = info ? JSON.stringify(info) : "";
  return text.length > MAX_INFO ? `${text.slice(0, MAX_INFO)} … (${bytes(text.length)} in all)` : text;
}

/** @param {{cache: any}} props */
function Cached({ cache }) {
  return html`<div class="panel">
    <${Facts} pairs=${[["Event", html`<${Name} of=${cache.event} />`], cache.ttl !== null && cache.ttl !== undefined && ["Expires in", duration(cache.ttl)], cache.bytes && ["Size", bytes(cache.bytes)]]} />
    <${Data} of=${cache.data} label="Data of the last event" encoding=${cache.encoding} />
    ${cache.cut && html`<p class="note">The beginning of ${bytes(cache.bytes)}.</p>`}
  </div>`;
}

/** @param {{app: string, name: string, after: string}} props */
function History({ app, name, after }) {
  const { data, error, busy, reload } = useCall(path(["apps", app, "channels", name, "history"], { after, limit: LIMIT }));
  const [shown, show] = useState(/** @type {any} */ (null));
  if (error?.status === 404) {
    return html`<${Empty} title="This channel keeps no history"><${Text} of=${error.message} /><//>`;
  }
  const items = data?.items;
  const { unknown, ...resumptions } = data?.resumptions ?? {};
  const resumed = Object.entries(resumptions);
  return html`<section aria-label="History">
    <div class="head2"><p class="note">The messages that the channel keeps, the newest first.${data && html` A client that has received all of them is at the position <span class="mono">${data.position}</span>.`}</p>${!error && html`<button type="button" onClick=${reload}>Refresh</button>`}</div>
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
        { key: "offset", label: "Offset", size: "s", number: true, show: (/** @type {any} */ row) => whole(row.offset) },
        { key: "at", label: "Time", size: "t", show: (/** @type {any} */ row) => html`<${Time} at=${row.at} day />` },
        {
          key: "event",
          label: "Event",
          show: (/** @type {any} */ row) => html`<${Name} of=${row.event} />`,
        },
        { key: "bytes", label: "Size", size: "s", number: true, show: (/** @type {any} */ row) => bytes(row.bytes) },
        {
          key: "data",
          label: "Data",
          size: "act",
          show: (/** @type {any} */ row) =>
            html`<button type="button" class="cell-button" aria-label=${`Show the data at offset ${row.offset}`} onClick=${() => show(row)}>Show</button>`,
        },
      ]}
    />
    ${data && html`<p class="note">Resumptions in all channels: ${resumed.map(([result, n]) => `${whole(Number(n))} ${result}${REASONS[result] ?? ""}`).join(", ") || "none"}.${unknown > 0 && ` Subscriptions whose position the server does not know, mostly of new clients: ${whole(unknown)}.`}</p>`}
    ${data?.recovered === false && html`<p class="note">The messages of this page have expired. These are the newest messages.</p>`}
    ${shown &&
    html`<${Dialog} title="Kept message" close=${() => show(null)}>
      <${Facts}
        pairs=${[
          ["Event", html`<${Name} of=${shown.event} />`],
          ["Time", html`<${Time} at=${shown.at} day />`],
          ["Offset", whole(shown.offset)],
          ["Size", bytes(shown.bytes)],
          shown.sender && ["Sender", html`<${Name} of=${shown.sender} />`],
        ]}
      />
      <${Data} of=${shown.data} label="Data of the message" encoding=${shown.encoding} />
      ${shown.cut && html`<p class="note">The beginning of ${bytes(shown.bytes)}.</p>`}
    <//>`}
    <${Pager}
      data=${data}
      shown=${items?.length ?? 0}
      noun=${items?.length === 1 ? "message" : "messages"}
      isFirst=${!after}
      first=${link("channel", { app, name, view: "history" })}
      next=${data?.next ? link("channel", { app, name, view: "history", after: data.next }) : null}
    />
  </section>`;
}
