// @ts-check
/** The MQTT sessions of an app, and its retained messages. */
import { html, useMemo, useState } from "./vendor/htm-preact.js";
import { call, go, link, notice, path, serverTime, useCall } from "./data.js";
import { bytes, date, direction, duration, plain, short } from "./text.js";
import { Badge, Choice, Confirm, Data, Dialog, Empty, Facts, Filter, Missing, Name, Node, Pager, Problem, Screen, Since, Table, Tabs, Text, Unfound } from "./ui.js";

const LIMIT = 50;
/** the session expiry interval of sessions without an end (MQTT 5.0, section 3.1.2.11.2) */
const NEVER = 0xffffffff;

/** @param {{params: Record<string, string>}} props */
export function Mqtt({ params }) {
  return html`<${Screen} title="MQTT" lead="A session outlives its connection: until an absent client returns, or the session expires, messages wait in it. Retained messages wait for new subscribers.">
    <${Tabs}
      label="Parts of MQTT"
      now=${params.view ?? "sessions"}
      tabs=${[
        ["sessions", "Sessions", link("mqtt", { app: params.app })],
        ["retained", "Retained messages", link("mqtt", { app: params.app, view: "retained" })],
      ]}
    />
    ${params.view === "retained" ? html`<${Retained} params=${params} />` : html`<${Sessions} params=${params} />`}
  <//>`;
}

/** @param {{params: Record<string, string>}} props */
function Sessions({ params }) {
  const { app, client = "", state = "", after = "" } = params;
  const { data, error, busy, reload } = useCall(path(["apps", app, "mqtt", "sessions"], { client, state, after, limit: LIMIT }), 5);
  const [shown, show] = useState(/** @type {any} */ (null));
  const rows = data?.sessions;
  /** @param {Record<string, string>} change */
  const put = (change) => go("mqtt", { ...params, after: "", ...change }, true);
  return html`<section aria-label="Sessions">
    <div class="fields">
      <${Filter} label="Client id or its beginning" search wide value=${client} put=${(/** @type {string} */ text) => put({ client: text })} />
      <${Choice} label="State" value=${state} put=${(/** @type {string} */ value) => put({ state: value })} options=${[["", "all"], ["connected", "connected"], ["absent", "absent"]]} />
    </div>
    <${Missing} data=${data} />
    ${rows?.some(addsNewer) && html`<p class="note">“+ newer”: messages that were published after the client disconnected may also wait for the client. They are not counted.</p>`}
    <${Table}
      caption="MQTT sessions"
      rows=${rows}
      id=${(/** @type {any} */ row) => `${row.owner} ${row.client}`}
      busy=${busy && !data}
      error=${error}
      again=${reload}
      bones=${3}
      empty=${data?.complete === false
        ? html`<${Unfound} of="sessions" />`
        : client || state
          ? html`<${Empty} title="No session matches" alone="No session of this worker matches">Change the filter, or clear it.<//>`
          : html`<${Empty} title="There are no MQTT sessions" alone="No MQTT client is connected to this worker">Connect an MQTT client with the key of this app. If it cannot connect, look at <code>server.mqtt.listen</code> and <code>server.proto</code> in the configuration.<//>`}
      columns=${[
        {
          key: "client",
          label: "Client id",
          show: (/** @type {any} */ row) => html`<button type="button" class="plain-button name" dir=${direction(row.client)} title=${plain(row.client)} onClick=${() => show(row)}><${Text} of=${row.client} /></button>`,
        },
        { key: "owner", label: "User", size: "m", show: owner },
        { key: "state", label: "State", size: "s", show: (/** @type {any} */ row) => html`<${Badge} kind=${row.state === "connected" ? "ok" : "plain"}>${row.state}<//>` },
        { key: "since", label: "In this state", size: "s", number: true, show: (/** @type {any} */ row) => html`<${Since} at=${row.since} />` },
        { key: "filters", label: "Subscriptions", size: "s", number: true, show: (/** @type {any} */ row) => known(row.filter_count) },
        { key: "waiting", label: "Waiting", size: "m", number: true, show: (/** @type {any} */ row) => `${known(row.waiting)}${addsNewer(row) ? " + newer" : ""}` },
        { key: "inflight", label: "In flight", size: "s", number: true, show: (/** @type {any} */ row) => known(row.inflight) },
      ]}
    />
    <${Pager}
      data=${data}
      shown=${rows?.length ?? 0}
      noun=${rows?.length === 1 ? "session" : "sessions"}
      also=" and of absent clients"
      isFirst=${!after}
      first=${link("mqtt", { ...params, after: "" })}
      next=${data?.next ? link("mqtt", { ...params, after: data.next }) : null}
    />
    ${shown &&
    html`<${Dialog} title="MQTT session" close=${() => show(null)}>
      <${Facts}
        pairs=${[
          ["Client id", html`<${Name} of=${shown.client} />`],
          ["User", owner(shown)],
          ["State", shown.state],
          ["Since", shown.since ? date(shown.since) : "–"],
          ["Expires", expiry(shown)],
          ["Worker", html`<${Node} of=${shown.worker} label="none, the client is absent" />`],
          ["Waiting", `${known(shown.waiting)}${addsNewer(shown) ? ", and the messages that were published after the client disconnected" : ""}`],
          ["In flight", known(shown.inflight)],
        ]}
      />
      <p class="strong">Subscriptions</p>
      <ul>
        ${shown.filters.map((/** @type {any} */ one) => html`<li class="mono of-channel"><${Text} of=${one.filter} /> <span class="faint">QoS ${one.qos}</span></li>`)}
      </ul>
      ${!shown.filters.length && html`<p class="note">The client has subscribed to nothing.</p>`}
    <//>`}
  </section>`;
}

/** Returns whether messages that are published now may wait for a client, and are not counted. @param {any} row @returns {boolean} */
function addsNewer(row) {
  return row.state === "absent" && (row.filter_count > row.filters.length || row.filters.some((/** @type {any} */ one) => one.qos));
}

/** @param {any} row */
function owner(row) {
  return html`<${Name} of=${row.owner === "anonymous" ? "" : row.owner} label="none" />`;
}

/** Returns the time at which a session ends. @param {any} row */
function expiry(row) {
  if (row.expires) return date(row.expires);
  if (!row.expiry) return "when the client disconnects";
  return row.expiry >= NEVER ? "never" : `${duration(row.expiry)} after the client disconnects`;
}

/** @param {number | null | undefined} value */
function known(value) {
  return value === null || value === undefined ? "–" : short(value);
}

/** @param {{topic: string}} a @param {{topic: string}} b */
function byTopic(a, b) {
  return a.topic < b.topic ? -1 : 1;
}

/** @param {{params: Record<string, string>}} props */
function Retained({ params }) {
  const { app, prefix = "", after = "" } = params;
  const { data, error, busy, reload } = useCall(path(["apps", app, "mqtt", "retained"], { prefix, after, limit: LIMIT }), 10);
  const [shown, show] = useState("");
  const [ending, end] = useState("");
  const rows = useMemo(() => data?.retained.slice().sort(byTopic), [data]);
  /** @param {string} topic */
  const remove = async (topic) => {
    await call("DELETE", path(["apps", app, "mqtt", "retained"], { topic }));
    notice.set(`The retained message of ${topic} is deleted.`);
    reload();
  };
  return html`<section aria-label="Retained messages">
    <div class="fields">
      <${Filter} label="Beginning of the topic" search wide value=${prefix} put=${(/** @type {string} */ text) => go("mqtt", { ...params, after: "", prefix: text }, true)} />
    </div>
    ${(after || data?.next) && html`<p class="note">Each page is sorted, but the pages are in no order.</p>`}
    <${Table}
      caption="Retained messages"
      rows=${rows}
      id=${(/** @type {any} */ row) => row.topic}
      busy=${busy && !data}
      error=${error}
      again=${reload}
      bones=${3}
      empty=${data?.complete === false
        ? html`<${Unfound} of="topics" />`
        : prefix
          ? html`<${Empty} title="No topic matches">Change the beginning of the topic, or clear it.<//>`
          : html`<${Empty} title="There are no retained messages">An MQTT client keeps a message here when it publishes with the flag <code>retain</code>.<//>`}
      columns=${[
        { key: "topic", label: "Topic", show: (/** @type {any} */ row) => html`<${Name} of=${row.topic} />` },
        { key: "qos", label: "QoS", size: "xs", number: true },
        { key: "bytes", label: "Size", size: "s", number: true, show: (/** @type {any} */ row) => bytes(row.bytes) },
        { key: "expires", label: "Expires in", size: "m", number: true, show: (/** @type {any} */ row) => (row.expires ? duration(Math.max(0, row.expires - serverTime())) : html`<span class="faint">never</span>`) },
        {
          key: "data",
          label: "Data",
          size: "act",
          show: (/** @type {any} */ row) => html`<button type="button" class="cell-button" aria-label=${`Show the data of ${plain(row.topic)}`} onClick=${() => show(row.topic)}>Show</button>`,
        },
        {
          key: "delete",
          label: "Action",
          size: "act",
          show: (/** @type {any} */ row) =>
            html`<button type="button" class="cell-button danger" aria-label=${`Delete the retained message of ${plain(row.topic)}`} onClick=${() => end(row.topic)}>Delete</button>`,
        },
      ]}
    />
    <${Pager}
      data=${data}
      shown=${rows?.length ?? 0}
      noun=${rows?.length === 1 ? "retained message" : "retained messages"}
      isFirst=${!after}
      first=${link("mqtt", { ...params, after: "" })}
      next=${data?.next ? link("mqtt", { ...params, after: data.next }) : null}
    />
    ${shown && html`<${Message} app=${app} topic=${shown} close=${() => show("")} />`}
    ${ending &&
    html`<${Confirm} title="Delete the retained message?" verb="Delete" act=${() => remove(ending)} close=${() => end("")}>
      <p>New subscribers of <b class="mono"><${Text} of=${ending} /></b> no longer receive it. Clients that have it keep it. This cannot be undone.</p>
    <//>`}
  </section>`;
}

/** @param {{app: string, topic: string, close: () => void}} props */
function Message({ app, topic, close }) {
  const { data, error } = useCall(path(["apps", app, "mqtt", "retained"], { prefix: topic, limit: 1, data: true }));
  const row = data?.retained?.find((/** @type {any} */ one) => one.topic === topic);
  return html`<${Dialog} title="Retained message" close=${close}>
    <${Facts} pairs=${[["Topic", html`<${Name} of=${topic} />`, true], row && ["QoS", row.qos], row && ["Size", bytes(row.bytes)], row && ["Expires", row.expires ? date(row.expires) : "never"]]} />
    ${error && html`<${Problem} error=${error} />`}
    ${data && !row && html`<p class="note">The message is gone: it has expired or was deleted.</p>`}
    ${row && html`<${Data} of=${row.data} label="Data of the retained message" encoding=${row.encoding} />`}
    ${row?.cut && html`<p class="note">This is the beginning.</p>`}
  <//>`;
}
