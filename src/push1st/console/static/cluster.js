// @ts-check
/** The nodes of the cluster and the broker that connects them. */
import { html, useEffect } from "./vendor/htm-preact.js";
import { learnNames, useCall } from "./data.js";
import { byNode, bytes, count, duration, short, whole } from "./text.js";
import { Badge, Empty, Facts, live, Loading, Missing, Name, Node, Problem, Screen, Section, State, Table, Text } from "./ui.js";

export function Cluster() {
  const { data, error, reload } = useCall("cluster", 5);
  useEffect(() => data && learnNames(data.nodes), [data]);
  const broker = data?.broker;
  return html`<${Screen} title="Cluster" lead="Each worker of each machine is a node. The broker connects the nodes.">
    ${error && html`<${Problem} error=${error} again=${reload} />`}
    <${Missing} data=${data} />
    ${!data && !error && html`<${Loading} rows=${5} />`}
    ${data &&
    html`<${Section} title="Broker" lead=${broker && `As the worker ${data.from} sees it. Totals begin with the start of this worker.`}>
      ${broker ? html`<${Broker} broker=${broker} away=${data.away} />` : html`<${Empty} title="There is no broker">One worker needs none. Several workers of one machine use an embedded Valkey; several machines use your own Redis or Valkey.<//>`}
    <//>
    <${Section} title="Nodes" lead="Each worker renews its lease in the broker. If a lease expires, the other workers remove this node.">
      <${Table}
        caption="Nodes"
        rows=${data.nodes.slice().sort(byNode)}
        id=${(/** @type {any} */ row) => row.id}
        columns=${[
          { key: "name", label: "Worker", show: (/** @type {any} */ row) => html`<${Node} of=${row.id} />${row.here && html` <span class="note">serves this tab</span>`}` },
          { key: "state", label: "State", size: "m", show: (/** @type {any} */ row) => html`<${State} of=${row.state} />` },
          { key: "id", label: "Node id", size: "l", show: (/** @type {any} */ row) => html`<${Name} of=${row.id} />` },
          { key: "pid", label: "Process", size: "s", number: true, show: (/** @type {any} */ row) => (given(row.pid) ? String(row.pid) : "–") },
          { key: "lease", label: "Lease expires in", size: "m", number: true, show: (/** @type {any} */ row) => (given(row.lease) ? duration(row.lease) : "–") },
        ]}
      />
    <//>`}
  <//>`;
}

/** @type {Record<string, string>} */
const KINDS = { embedded: "embedded Valkey", shared: "your own Redis or Valkey" };
/** @type {Record<string, string>} */
const WAYS = { server: "one server", sentinel: "through Sentinel", cluster: "a cluster of servers" };

/** @param {{broker: any, away: string}} props */
function Broker({ broker, away }) {
  // The text is like `server host:6379, without a password, database 0, prefix push1st`.
  const [where, ...rest] = (broker.url ?? "").split(", ");
  const [way] = where.split(" ", 1);
  return html`<div class="panel">
    <${Facts}
      pairs=${[
        ["State", away || broker.connected === false ? html`<${Badge} kind="bad">away<//>` : html`<${Badge} kind="ok">connected<//>`],
        broker.kind && ["Kind", KINDS[broker.kind] ?? broker.kind],
        ["Without the broker", `${duration(broker.away_seconds ?? 0)} in total`],
        ["Not confirmed by the broker", `${count(broker.unconfirmed ?? 0, "message")} in total`],
        broker.url && ["Address", html`<${Name} of=${where.slice(way.length + 1)} />`, true],
        broker.url && ["Connection", html`<${Text} of=${[WAYS[way] ?? way, ...rest].join(", ").replace(/prefix (?=[^ ]*$)/, "keys begin with ")} />`, true],
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
