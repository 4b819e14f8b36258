// @ts-check
/** The nodes of the cluster and the broker that connects them. */
import { html, useEffect } from "./vendor/htm-preact.js";
import { awaySince, learnNames, useCall } from "./data.js";
import { bytes, clock, duration, short, whole, withoutNumber } from "./text.js";
import { Badge, Empty, Facts, live, Loading, Missing, Name, Node, Problem, Screen, Section, Table, Text } from "./ui.js";

export function Cluster() {
  const { data, error, reload } = useCall("cluster", 5);
  useEffect(() => data && learnNames(data.nodes), [data]);
  const broker = data?.broker;
  return html`<${Screen} title="Cluster" lead="Each worker of each machine is a node. The broker connects the nodes.">
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
          { key: "name", label: "Worker", show: (/** @type {any} */ row) => html`<${Node} of=${row.id} />` },
          { key: "state", label: "State", size: "l", show: state },
          { key: "id", label: "Node", size: "l", show: (/** @type {any} */ row) => html`<${Name} of=${row.id} />` },
          { key: "pid", label: "Process", size: "s", number: true, show: (/** @type {any} */ row) => (given(row.pid) ? String(row.pid) : "–") },
          { key: "lease", label: "Lease left", size: "s", number: true, show: (/** @type {any} */ row) => (given(row.lease) ? duration(row.lease) : "–") },
        ]}
      />
    <//>`}
  <//>`;
}

/** @param {any} row */
function state(row) {
  if (row.state === "here") return html`<${Badge} kind="ok">answers<//> <span class="note">this page</span>`;
  if (row.state === "answered") return html`<${Badge} kind="ok">answers<//>`;
  return row.state === "missing" ? html`<${Badge} kind="bad">has not answered<//>` : html`<${Badge} kind="plain">no console on this node<//>`;
}

/** @type {Record<string, string>} */
const KINDS = { embedded: "embedded Valkey", shared: "shared" };

/** @param {{broker: any, away: string}} props */
function Broker({ broker, away }) {
  return html`<div class="panel">
    <${Facts}
      pairs=${[
        ["State", away || broker.connected === false ? html`<${Badge} kind="bad">away<//>` : html`<${Badge} kind="ok">connected<//>`],
        broker.kind && ["Kind", KINDS[broker.kind] ?? broker.kind],
        broker.url && ["Address", html`<${Name} of=${broker.url} />`, true],
        away && ["Reason", html`<${Text} of=${withoutNumber(away)} />`],
        away && ["Away since", clock(awaySince())],
        ["Away in total", duration(broker.away_seconds ?? 0)],
        ["Messages not confirmed", short(broker.unconfirmed ?? 0)],
      ]}
    />
    ${(broker.servers ?? []).map(
      (/** @type {any} */ one) =>
        html`<${Facts}
          key=${one.address}
          pairs=${[
            one.address && ["Server", html`<${Name} of=${one.address} />`],
            ["Version", html`<${Text} of=${one.version} />`],
            ["Role", html`<${Text} of=${one.role} />`],
            given(one.rtt_ms) && ["Round trip", live(duration(one.rtt_ms / 1000))],
            ["Memory", live(one.memory_most ? `${bytes(one.memory)} of ${bytes(one.memory_most)}` : bytes(one.memory))],
            ["Eviction policy", html`<${Text} of=${one.policy} />`],
            ["Persistence", html`<${Text} of=${one.persistence} />`],
            ["Clients", live(whole(one.clients))],
            ["Commands", live(`${short(one.ops)}/s`)],
            given(one.slots) && ["Hash slots", whole(one.slots)],
          ]}
        />`,
    )}
  </div>`;
}

/** @param {unknown} value */
function given(value) {
  return value !== null && value !== undefined && value !== "";
}
