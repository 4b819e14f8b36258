// @ts-check
/** The nodes of the cluster and the broker that connects them. */
import { html } from "./vendor/htm-preact.js";
import { useCall } from "./data.js";
import { bytes, duration, short, whole } from "./text.js";
import { Badge, Empty, Facts, Loading, Missing, Name, Problem, Screen, Section, Table, Text } from "./ui.js";

export function Cluster() {
  const { data, error, reload } = useCall("cluster", 5);
  const broker = data?.broker;
  return html`<${Screen} title="Cluster" lead="The nodes are the workers of all machines. The broker connects them.">
    ${error && html`<${Problem} error=${error} again=${reload} />`}
    <${Missing} data=${data} />
    ${!data && !error && html`<${Loading} rows=${5} />`}
    ${data &&
    html`<${Section} title="Broker">
      ${broker ? html`<${Broker} broker=${broker} away=${data.away} />` : html`<${Empty} title="There is no broker">One worker needs none. Several workers of one machine use an embedded Valkey; several machines use your own Redis or Valkey.<//>`}
    <//>
    <${Section} title="Nodes">
      <${Table}
        caption="Nodes"
        rows=${data.nodes}
        id=${(/** @type {any} */ row) => row.id}
        columns=${[
          { key: "id", label: "Node", show: (/** @type {any} */ row) => html`<${Name} of=${row.id} />` },
          { key: "state", label: "State", size: "xl", show: state },
          { key: "server_run_id", label: "Run of the server", size: "l", show: (/** @type {any} */ row) => html`<${Name} of=${row.server_run_id} />` },
          { key: "lease", label: "Lease", size: "m", number: true, show: (/** @type {any} */ row) => (row.lease === null || row.lease === undefined ? "–" : duration(row.lease)) },
        ]}
      />
    <//>`}
  <//>`;
}

/** @param {any} row */
function state(row) {
  if (row.here) return html`<${Badge} kind="ok">this worker<//>`;
  if (row.answered === false) return html`<${Badge} kind="warn">no console on this node<//>`;
  return html`<${Badge} kind="ok">answers<//>`;
}

/** @param {{broker: any, away: string}} props */
function Broker({ broker, away }) {
  const shown = broker.servers ?? [broker];
  return html`<div class="panel">
    <${Facts}
      pairs=${[
        ["State", away || broker.connected === false ? html`<${Badge} kind="bad">away<//>` : html`<${Badge} kind="ok">connected<//>`],
        ["Address", html`<${Name} of=${broker.url} label="embedded" />`],
        away && ["Reason", html`<${Text} of=${away} />`],
        given(broker.away_seconds) && ["Away in all", duration(broker.away_seconds)],
        given(broker.unconfirmed) && ["Not confirmed", short(broker.unconfirmed)],
        given(broker.policy) && ["Eviction policy", html`<${Text} of=${broker.policy} />`],
        given(broker.persistence) && ["Persistence", html`<${Text} of=${broker.persistence} />`],
        given(broker.slots) && ["Slots", html`<${Text} of=${typeof broker.slots === "object" ? JSON.stringify(broker.slots) : broker.slots} />`],
      ]}
    />
    ${shown.map(
      (/** @type {any} */ one, /** @type {number} */ i) =>
        html`<${Facts}
          key=${i}
          pairs=${[
            given(one.version) && ["Version", html`<${Text} of=${one.version} />`],
            given(one.role) && ["Role", html`<${Text} of=${one.role} />`],
            given(one.rtt_ms) && ["Round trip", duration(one.rtt_ms / 1000)],
            given(one.memory) && ["Memory", one.memory_most ? `${bytes(one.memory)} of ${bytes(one.memory_most)}` : bytes(one.memory)],
            given(one.clients) && ["Clients", whole(one.clients)],
            given(one.ops) && ["Operations", `${short(one.ops)}/s`],
          ]}
        />`,
    )}
  </div>`;
}

/** @param {unknown} value */
function given(value) {
  return value !== null && value !== undefined && value !== "";
}
