// @ts-check
/** The connections of an app, and their end by the operator. */
import { html, useState } from "./vendor/htm-preact.js";
import { call, go, link, notice, path, useCall } from "./data.js";
import { bytes, count, direction, plain, protocolName, short } from "./text.js";
import { Check, Choice, Confirm, Dialog, Empty, Facts, Filter, Missing, Name, Node, Pager, Screen, Since, Table, Text, Time, Unfound } from "./ui.js";

const LIMIT = 50;
const PROTOCOLS = /** @type {const} */ ([
  ["", "all protocols"],
  ["pusher", "Pusher"],
  ["pusher-xhr", "Pusher, XHR"],
  ["websocket", "WebSocket"],
  ["mqtt", "MQTT"],
  ["sse", "SSE"],
]);

/** @param {{params: Record<string, string>}} props */
export function Connections({ params }) {
  const { app, id = "", user = "", ip = "", channel = "", protocol = "", behind = "", after = "" } = params;
  const filter = { id, user, ip, channel, protocol, behind };
  const { data, error, busy, reload } = useCall(path(["apps", app, "connections"], { ...filter, after, limit: LIMIT }), 5);
  const [shown, show] = useState(/** @type {any} */ (null));
  const [ending, end] = useState(/** @type {{row: any, user: boolean} | null} */ (null));
  const rows = data?.connections;
  /** @param {string} key */
  const put = (key) => (/** @type {string} */ value) => go("connections", { app, ...filter, [key]: value }, true);
  const isFiltered = Object.values(filter).some(Boolean);
  return html`<${Screen} title="Connections" lead="The clients that are connected to this app now, on all workers, in no particular order. The filters compare whole values.">
    <div class="fields">
      <${Filter} label="User" search value=${user} put=${put("user")} />
      <${Filter} label="Channel" value=${channel} put=${put("channel")} />
      <${Filter} label="Socket or client id" value=${id} put=${put("id")} />
      <${Filter} label="Address" value=${ip} put=${put("ip")} />
      <${Choice} label="Protocol" value=${protocol} put=${put("protocol")} options=${PROTOCOLS} />
      <${Check} label="With unsent bytes only" value=${Boolean(behind)} put=${(/** @type {boolean} */ is) => put("behind")(is ? "1" : "")} />
      ${isFiltered && html`<a class="button" href=${link("connections", { app })}>Clear the filter</a>`}
    </div>
    <${Missing} data=${data} />
    <${Table}
      caption="Connections"
      rows=${rows}
      id=${(/** @type {any} */ row) => row.id}
      busy=${busy && !data}
      error=${error}
      again=${reload}
      empty=${data?.complete === false
        ? html`<${Unfound} of="connections" />`
        : isFiltered
          ? html`<${Empty} title="No connection matches" alone="No connection of this worker matches">Change the filter, or clear it.<//>`
          : html`<${Empty} title="No client is connected" alone="No client is connected to this worker">Connect a client with the key of this app, then it appears here.<//>`}
      columns=${[
        {
          key: "id",
          label: "Socket or client id",
          size: "l",
          show: (/** @type {any} */ row) => html`<button type="button" class="plain-button name" dir=${direction(nameOf(row))} title=${plain(nameOf(row))} onClick=${() => show(row)}><${Text} of=${nameOf(row)} /></button>`,
        },
        { key: "user", label: "User", show: (/** @type {any} */ row) => html`<${Name} of=${row.user} label="none" />` },
        { key: "ip", label: "Address", size: "m", show: (/** @type {any} */ row) => html`<${Name} of=${row.ip} />` },
        { key: "protocol", label: "Protocol", size: "s", show: (/** @type {any} */ row) => protocolName(row.protocol) },
        { key: "behind", label: "Unsent", size: "xs", number: true, show: (/** @type {any} */ row) => (row.behind ? bytes(row.behind) : html`<span class="faint">${bytes(0)}</span>`) },
        { key: "since", label: "Open for", size: "s", number: true, show: (/** @type {any} */ row) => html`<${Since} at=${row.since} />` },
        {
          key: "end",
          label: "Action",
          size: "act wide",
          show: (/** @type {any} */ row) =>
            html`<button type="button" class="cell-button danger" aria-label=${`Terminate ${plain(nameOf(row))}`} onClick=${() => end({ row, user: false })}>Terminate</button>`,
        },
      ]}
    />
    <${Pager}
      data=${data}
      shown=${rows?.length ?? 0}
      noun=${rows?.length === 1 ? "connection" : "connections"}
      isFirst=${!after}
      first=${link("connections", { app, ...filter })}
      next=${data?.next ? link("connections", { app, ...filter, after: data.next }) : null}
    />
    ${shown &&
    html`<${Detail}
      app=${app}
      row=${shown}
      close=${() => show(null)}
      end=${(/** @type {boolean} */ user) => {
        show(null);
        end({ row: shown, user });
      }}
    />`}
    ${ending && html`<${Terminate} app=${app} row=${ending.row} user=${ending.user} close=${() => end(null)} done=${reload} />`}
  <//>`;
}

/** @param {{app: string, row: any, close: () => void, end: (user: boolean) => void}} props */
function Detail({ app, row, close, end }) {
  const more = row.channel_count - row.channels.length;
  return html`<${Dialog}
    title="Connection"
    close=${close}
    actions=${html`${row.user && html`<button type="button" class="danger" onClick=${() => end(true)}>Terminate the user</button>`}
      <button type="button" class="danger" onClick=${() => end(false)}>Terminate</button>
      <a class="button" href=${link("inspector", { app, socket: nameOf(row) })}>Inspect</a>
      <button type="button" onClick=${close}>Close</button>`}
  >
    <${Facts}
      pairs=${[
        ...identity(row),
        ["Connected", html`<${Time} at=${row.since} day />`],
        ["Worker", html`<${Node} of=${row.worker} />`],
        ["Origin", html`<${Name} of=${row.origin} label="none" />`],
        ["Unsent", bytes(row.behind ?? 0)],
        ["Client", html`<${Text} of=${row.user_agent || "not stated"} />`, true],
      ]}
    />
    <p class="strong">${row.channel_count ? `Subscribed to ${count(row.channel_count, row.protocol.startsWith("mqtt") ? "topic filter" : "channel")}` : "Subscribed to nothing"}</p>
    <ul>
      ${row.channels.map((/** @type {string} */ name) => html`<li key=${name}><a class="of-channel mono" href=${link("channel", { app, name })}><${Text} of=${name} /></a></li>`)}
    </ul>
    ${more > 0 && html`<p class="note">and ${short(more)} more</p>`}
  <//>`;
}

/** @param {{app: string, row: any, user: boolean, close: () => void, done: () => void}} props */
function Terminate({ app, row, user, close, done }) {
  const [reconnect, set] = useState(true);
  const act = async () => {
    const answer = user
      ? await call("POST", path(["apps", app, "users", row.user, "terminate"]))
      : await call("POST", path(["apps", app, "connections", row.id, "terminate"]), { reconnect });
    const workers = answer?.delivered ?? answer?.workers;
    notice.set(`${user ? `The connections of ${row.user}` : nameOf(row)} will be closed.${typeof workers === "number" ? ` The request was delivered to ${count(workers, "worker")}.` : ""}`);
    setTimeout(done, 400);
  };
  if (user) {
    return html`<${Confirm} title="Terminate the user?" verb="Terminate the user" act=${act} close=${close}>
      <p>The server ends all connections that are signed in as <b><${Text} of=${row.user} /></b>, on all workers. ${OUTCOMES.pusher[1]}</p>
    <//>`;
  }
  const outcomes = OUTCOMES[row.protocol.replace(/(-xhr|\d)$/, "")] ?? OUTCOMES.pusher;
  const choices = [[true, "The client may reconnect"], [false, "The client must not reconnect"]];
  return html`<${Confirm} title="Terminate the connection?" verb="Terminate" act=${act} close=${close}>
    <${Facts} pairs=${identity(row)} />
    <p>The server ends this connection${row.user ? "; other connections of the user stay open" : ""}.</p>
    <fieldset class="choices">
      <legend class="hidden">What the client may do</legend>
      ${choices.map(([is, label]) => html`<label class="check" key=${label}><input type="radio" name="reconnect" checked=${reconnect === is} onChange=${() => set(Boolean(is))} /><span>${label}</span></label>`)}
    </fieldset>
    <p class="note">${outcomes[reconnect ? 0 : 1]}</p>
  <//>`;
}

/** Returns the name by which an operator knows a connection. @param {any} row @returns {string} */
function nameOf(row) {
  return row.client_id || row.id;
}

/**
 * Returns the facts by which an operator recognizes a connection.
 * @param {any} row
 * @returns {[string, import("./ui.js").Child][]}
 */
function identity(row) {
  return [
    row.client_id && ["Client id", html`<${Name} of=${row.client_id} />`],
    ["Socket id", html`<${Name} of=${row.id} />`],
    ["User", html`<${Name} of=${row.user} label="none" />`],
    ["Address", html`<${Name} of=${row.ip} />`],
    ["Protocol", protocolName(row.protocol)],
  ];
}

/** What a client does after its end: if it may reconnect, and if it must not. @type {Record<string, [string, string]>} */
const OUTCOMES = {
  pusher: ["A Pusher client gets the close code 4200. It reconnects at once and subscribes again.", "A Pusher client gets the close code 4009, and does not reconnect by itself."],
  websocket: ["The client gets the close code 4200, which means: reconnect at once.", "The client gets the close code 4009, which means: do not reconnect."],
  mqtt: ["An MQTT 5 client gets the reason 0x8B, server shutting down. For MQTT 3.1.1, the socket is closed without a reason. Most clients reconnect.", "An MQTT 5 client gets the reason 0x98, administrative action. For MQTT 3.1.1, the socket is closed without a reason. Most clients of both reconnect: revoke their access to keep them out."],
  sse: ["The stream ends, and a browser reconnects after some seconds.", "The stream ends. Browsers reconnect in any case: revoke their access to keep them out."],
};
