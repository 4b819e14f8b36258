// @ts-check
/** The overview: figures of all workers with ten minutes of history, and what needs attention. */
import { html, useEffect, useMemo, useRef, useState } from "./vendor/htm-preact.js";
import { away, call, learnNames, link, live, liveState, useLive, useStore } from "./data.js";
import { byNode, bytes, clock, count, duration, nodeName, percent, protocolName, rate, short, whole } from "./text.js";
import { Empty, Loading, Name, Node, Problem, Screen, Section, State, Table, Text } from "./ui.js";

const SECONDS = 600;
const EVERY = 2;
const POLL_MS = 5000;
const SUMMARY_MS = 60_000;
const LAG_SECONDS = 0.1;
const LAG_KEPT = 60;
const CERTIFICATE_DAYS = 14;
const FILES_PART = 0.8;
const HOOK_SECONDS = 60;
/** the seconds between two answers from which a rate is computed */
const LEAST_SECONDS = 0.5;

/** @typedef {{t: number, v: number}} Point */
/**
 * @typedef {object} Tile
 * @property {string} key
 * @property {string} label
 * @property {string} unit
 * @property {(value: number) => string} show
 */

/** @type {Tile[]} */
const TILES = [
  { key: "connections", label: "Connections", unit: "", show: short },
  { key: "events_in", label: "Events in", unit: "/s", show: rate },
  { key: "messages_out", label: "Messages out", unit: "/s", show: rate },
  { key: "bytes_out", label: "Bytes out", unit: "/s", show: bytes },
  { key: "cpu_seconds", label: "CPU (% of a core)", unit: "", show: percent },
  { key: "refusals", label: "Refusals", unit: "/s", show: rate },
];

/** the figures that the tab keeps: those of the tiles, and the lost hook events */
const KEYS = [...TILES.map(({ key }) => key), "hook_events_lost"];

/** The points of these figures, and the last answer. They outlive the screen, so that a return to it shows no gap. */
class Recorder {
  constructor() {
    /** @type {Map<string, Point[]>} */
    this.points = new Map(KEYS.map((key) => [key, []]));
    /** @type {any} */
    this.last = null;
    /** @type {Map<string, {rate?: number, cpu?: number, lag: Point[]}>} */
    this.workers = new Map();
    /** whether the points begin with the samples of the next answer that has samples */
    this.wantsSamples = true;
  }

  /** Returns whether the answer is newer than the last one. @param {any} answer */
  take(answer) {
    const last = this.last;
    if (last && answer.at <= last.at) return false;
    // One curve never joins the figures of all workers with those of one, or those of one with those of another one.
    const before = last && answer.at - last.at <= 30 && scope(last) === scope(answer) ? last : null;
    this.last = answer;
    if (!before) {
      this.workers.clear();
      for (const key of KEYS) this.points.set(key, []);
      this.wantsSamples = true;
    }
    if (this.wantsSamples && answer.series) this.restart(answer);
    const seconds = before ? answer.at - before.at : 0;
    const sums = new Map(KEYS.map((key) => [key, 0]));
    const workers = new Map();
    let pairs = 0;
    for (const node of answer.nodes) {
      sums.set("connections", (sums.get("connections") ?? 0) + open(node));
      const former = before?.nodes.find((/** @type {any} */ one) => one.id === node.id && one.pid === node.pid);
      const { rate, cpu, lag: lags = [] } = this.workers.get(node.id) ?? {};
      const lag = lags.filter(({ t }) => t > answer.at - LAG_KEPT);
      lag.push({ t: answer.at, v: node.loop_lag ?? 0 });
      const figures = { rate, cpu, lag };
      if (former && seconds >= LEAST_SECONDS) {
        pairs += 1;
        for (const key of KEYS.slice(1)) {
          const grown = Math.max(0, counter(node, key) - counter(former, key)) / seconds;
          sums.set(key, (sums.get(key) ?? 0) + grown);
          if (key === "messages_out") figures.rate = grown;
          if (key === "cpu_seconds") figures.cpu = grown;
        }
      }
      workers.set(node.id, figures);
    }
    this.workers = workers;
    for (const [key, points] of this.points) {
      // A worker that has not answered in time would look like clients that have left.
      if (!answer.missing?.length && (key === "connections" || pairs)) points.push({ t: answer.at, v: sums.get(key) ?? 0 });
      while (points.length && points[0].t < answer.at - SECONDS - 20) points.shift();
    }
    return true;
  }

  /** Begins with the samples that the workers have kept. @param {any} answer */
  restart(answer) {
    this.wantsSamples = false;
    for (const key of KEYS) this.points.set(key, sampled(answer, key));
  }
}

/** Returns the worker that has answered alone; "" if all have answered. @param {any} answer */
function scope(answer) {
  return answer.away ? answer.here : "";
}

/** @param {any} node */
function open(node) {
  return Object.values(node.connections ?? {}).reduce((/** @type {number} */ sum, /** @type {any} */ n) => sum + n, 0);
}

/** @param {any} node @param {string} key */
function counter(node, key) {
  return key === "cpu_seconds" ? (node.cpu_seconds ?? 0) : (node.counters?.[key] ?? 0);
}

/**
 * Returns the points of a tile from the sums of the workers' samples.
 * @param {any} answer @param {string} key
 * @returns {Point[]}
 */
function sampled({ series }, key) {
  /** @type {number[]} */
  const values = series.values[series.fields.indexOf(key)] ?? [];
  const points = values.map((v, i) => ({ t: series.at - (values.length - 1 - i) * series.every, v }));
  return key === "connections" ? points : points.slice(1); // the first sample has no rate
}

const recorder = new Recorder();

/** The first answer. It is requested before the console has checked that the operator is signed in. */
const first = location.hash.length < 3 || location.hash.startsWith("#/overview") ? call("GET", "overview") : null;
first?.catch(() => {});

export function Overview() {
  const [, again] = useState(0);
  const [error, fail] = useState(/** @type {any} */ (null));
  /** @param {any} answer */
  const take = (answer) => {
    if (answer.error) return fail(new Error(answer.error));
    if ("away" in answer) away.set(answer.away || "");
    const isNew = recorder.take(answer);
    learnNames([...answer.nodes, ...(answer.silent ?? []), ...(answer.lost ?? [])]);
    fail(null);
    again((n) => n + 1);
    if (isNew && recorder.wantsSamples) live.again("overview"); // the same worker then sends its samples
    return undefined;
  };
  useLive("overview", { every: EVERY }, take);
  // Without the live channel, for example behind some proxies, this screen requests each answer.
  useEffect(() => {
    const ask = () => {
      if (!document.hidden && liveState.value !== "open") call("GET", "overview").then(take, fail);
    };
    if (!recorder.last) first ? first.then(take, ask) : ask();
    const timer = setInterval(ask, POLL_MS);
    return () => clearInterval(timer);
  }, []);
  const isAway = useStore(away);
  useEffect(() => {
    // An answer from before an outage must not stand below the banner, and none from the outage without it.
    if (recorder.last && !recorder.last.away !== !isAway) call("GET", "overview").then(take, () => {});
  }, [isAway]);
  const data = recorder.last;
  const state = data?.away ? "unknown" : "no answer";
  const silent = (data?.silent ?? []).map((/** @type {any} */ one) => ({ ...one, silent: one.replaced ? "replaced" : state }));
  const only = data?.away ? ` of ${data.nodes.map(nodeName).join(", ")} only` : "";
  return html`<${Screen} title="Overview">
    ${error && html`<${Problem} error=${error} again=${() => call("GET", "overview").then(take, fail)} />`}
    ${!data && !error && html`<${Loading} rows=${8} />`}
    ${data &&
    html`<${Verdict} data=${data} />
      <section class="tiles" aria-labelledby="figures" aria-live="off">
        <h2 class="hidden" id="figures">The last ten minutes</h2>
        ${TILES.map((tile) => html`<${TileBox} key=${tile.key} tile=${{ ...tile, label: tile.label.replace(/( \(.*)?$/, only + "$1") }} points=${recorder.points.get(tile.key) ?? []} now=${data.at} />`)}
      </section>
      <${Section} title="Workers"><${Workers} nodes=${[...data.nodes, ...silent].sort(byNode)} /><//>
      <${Section} title=${`Connections by protocol${only}`}><${Protocols} nodes=${data.nodes} /><//>
      <${Summary} data=${data} />`}
  <//>`;
}

/** @param {{tile: Tile, points: Point[], now: number}} props */
function TileBox({ tile, points, now }) {
  const [at, point] = useState(/** @type {number | null} */ (null));
  const last = points[points.length - 1];
  const found = at === null || !points.length ? null : points.reduce((best, one) => (Math.abs(one.t - at) < Math.abs(best.t - at) ? one : best));
  const most = points.reduce((most, { v }) => Math.max(most, v), 0);
  const shown = last ? tile.show(last.v) : "–";
  const [number, unit = ""] = shown.split("\u202f");
  return html`<div class="tile">
    <p class="label" key="label">${tile.label}</p>
    <p class="big" key=${`big ${shown}`}>${number}<span class="unit">${last ? unit + tile.unit : ""}</span></p>
    <${Spark} key="spark" points=${points} now=${now} most=${most} found=${found} point=${point} label=${`${tile.label}, ten minutes: at most ${tile.show(most)}${tile.unit}, now ${shown}${tile.unit}`} />
    <p class="caption" key=${found ? `at ${found.t}` : `most ${tile.show(most)}`}>
      ${found
        ? html`<span>${clock(found.t)}</span><span>${tile.show(found.v)}${tile.unit}</span>`
        : html`<span>10 min ago</span><span>${points.length ? `peak ${tile.show(most)}${tile.unit}` : "none yet"}</span>`}
    </p>
  </div>`;
}

const WIDE = 600;
const HIGH = 48;

/**
 * A line of ten minutes. It begins at zero, so that a small change looks small.
 * @param {{points: Point[], now: number, most: number, found: Point | null, point: (at: number | null) => void, label: string}} props
 */
function Spark({ points, now, most, found, point, label }) {
  /** @param {Point} one */
  const x = (one) => Math.max(0, WIDE - (now - one.t)).toFixed(1);
  /** @param {Point} one */
  const y = (one) => (HIGH - 2 - (most ? (one.v / most) * (HIGH - 6) : 0)).toFixed(1);
  const visible = points.filter(({ t }) => t >= now - SECONDS);
  const line = visible.map((one, i) => `${i ? "L" : "M"}${x(one)} ${y(one)}`).join("");
  const last = visible[visible.length - 1];
  /** @param {any} event */
  const move = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    point(now - SECONDS + ((event.clientX - box.left) / box.width) * SECONDS);
  };
  return html`<svg class="spark" viewBox=${`0 0 ${WIDE} ${HIGH}`} preserveAspectRatio="none" role="img" aria-label=${label} onPointerMove=${move} onPointerLeave=${() => point(null)}>
    <path class="base" d=${`M0 ${HIGH - 1}H${WIDE}`} />
    ${line && html`<path class="area" d=${`${line}L${x(last)} ${HIGH - 1}L${x(visible[0])} ${HIGH - 1}Z`} /><path d=${line} /><path class="last" d=${`M${x(last)} ${y(last)}h0`} />`}
    ${found && html`<path class="cross" d=${`M${x(found)} 0V${HIGH}`} /><path class="last" d=${`M${x(found)} ${y(found)}h0`} />`}
  </svg>`;
}

/**
 * Returns the states that need attention, the worst first.
 * @param {any} data
 * @returns {{kind: "bad" | "warn" | "ok", text: any, key: string}[]}
 */
function statements(data) {
  /** @type {{kind: "bad" | "warn" | "ok", text: any, key: string}[]} */
  const found = [];
  /** @param {"bad" | "warn"} kind @param {string} key @param {any} text */
  const say = (kind, key, text) => void found.push({ kind, key, text });
  for (const one of (data.away ? [] : data.silent) ?? []) {
    say("bad", `missing ${one.id}`, html`The worker <b><${Node} of=${one.id} /></b> has not answered.${replaced(one)}`);
  }
  for (const one of data.lost ?? []) {
    const how = one.replaced ? `disappeared without a graceful stop, so its clients had to reconnect.${replaced(one)}` : `has disappeared without a graceful stop, or hangs. Other workers detected this at ${clock(one.at)}.`;
    say(one.replaced ? "warn" : "bad", `lost ${one.id}`, html`The worker <b><${Node} of=${one.id} /></b> ${how}`);
  }
  if (data.broker_lost_at) say("bad", "broker lost", `The broker lost its state at ${clock(data.broker_lost_at)}: earlier histories, retained messages and absent MQTT sessions are lost.`);
  if (data.different_apps?.length) say("warn", "apps", html`The settings of the apps differ between workers: ${data.different_apps.map((/** @type {string[]} */ names, /** @type {number} */ i) => html`${i > 0 && "; "}<b><${Text} of=${names.join(", ")} /></b>`)}. They must be the same on all machines: correct the configuration, then run <code>push1st reload</code> on each changed machine.`);
  if (data.without_console) say("warn", "without console", html`${data.without_console === 1 ? "One worker has" : `${whole(data.without_console)} workers have`} no console, so all screens are incomplete. Configure on all machines the same <code>console.password</code>. <a href=${link("cluster")}>Cluster</a>`);
  const oldest = data.nodes.reduce((/** @type {any} */ most, /** @type {any} */ node) => ((node.hook_oldest ?? 0) > (most.hook_oldest ?? 0) ? node : most), {});
  if (oldest.hook_oldest >= HOOK_SECONDS) {
    // A figure that changes stands at the end of the last text, because it moves what follows.
    say("bad", "hooks", html`<a href=${link("hooks", { app: oldest.hook_app })}>Hooks</a> of the app <b><${Text} of=${oldest.hook_app} /></b>${`: the oldest waiting event has waited ${duration(oldest.hook_oldest)}.`}`);
  }
  /** @param {any} node */
  const isNew = (node) => node.uptime < SECONDS; // it may have lost events before its first sample
  if (recorder.points.get("hook_events_lost")?.some(({ v }) => v > 0) || data.nodes.some((/** @type {any} */ node) => isNew(node) && counter(node, "hook_events_lost") > 0)) {
    const app = data.nodes.map((/** @type {any} */ node) => node.hook_lost_app).find(Boolean);
    const where = app ? html`, for example of the app <b><${Text} of=${app} /></b>: see its <a href=${link("hooks", { app })}>dead letters</a>.` : html`: see the dead letters of the <a href=${link("apps")}>apps</a>.`;
    say("bad", "hooks lost", html`The server has given up hook events in the last ten minutes${where}`);
  }
  for (const node of data.nodes) {
    const name = html`<b><${Text} of=${nodeName(node)} /></b>`;
    if (node.draining) say("warn", `draining ${node.id}`, html`The worker ${name} is draining: it accepts no clients and is about to stop.`);
    const lag = Math.max(...(recorder.workers.get(node.id)?.lag ?? [{ t: 0, v: 0 }]).map(({ v }) => v));
    if (lag >= LAG_SECONDS) say("warn", `lag ${node.id}`, html`In the last minute, clients of ${name} had to wait for ${`the event loop, for up to ${duration(lag)}.`}`);
    if (node.fds && node.fds_most && node.fds >= node.fds_most * FILES_PART) {
      say("bad", `files ${node.id}`, html`The worker ${name} needs more file descriptors. Raise the limit (<code>ulimit -n</code>)${`; it uses ${whole(node.fds)} of ${whole(node.fds_most)}.`}`);
    }
  }
  const versions = [...new Set(data.nodes.map((/** @type {any} */ node) => node.version))];
  if (versions.length > 1) say("warn", "versions", `The workers run different versions: ${versions.join(", ")}.`);
  for (const one of data.certificates ?? []) {
    if (one.days < 0) say("bad", `certificate ${one.listener}`, html`The certificate of <${Text} of=${one.listener} /> has expired.`);
    else if (one.days < CERTIFICATE_DAYS) say("warn", `certificate ${one.listener}`, html`The certificate of <${Text} of=${one.listener} /> expires in ${count(one.days, "day")}.`);
  }
  if (data.reload?.problems?.length) {
    say("bad", "reload", html`The last reload failed: <${Text} of=${data.reload.problems[0]} /> <a href=${link("configuration")}>Configuration</a>`);
  }
  if (data.warnings) say("warn", "warnings", html`The configuration has ${count(data.warnings, "warning")}. <a href=${link("configuration")}>Configuration</a>`);
  found.sort((a, b) => Number(a.kind === "warn") - Number(b.kind === "warn"));
  return found;
}

/** @param {any} one */
function replaced(one) {
  return one.replaced ? ` A new worker replaced it at ${clock(one.replaced)}.` : "";
}

/** Returns whether there are rates, which need two samples. */
function isMeasured() {
  return Boolean(recorder.points.get("refusals")?.length);
}

/** @param {any} data */
function wellText(data) {
  const workers = data.nodes.length === 1 ? "The worker serves clients." : `All ${whole(data.nodes.length)} workers serve clients.`;
  return `${workers} ${isMeasured() ? "Nothing needs attention." : "The first figures follow in a few seconds."}`;
}

/** @param {{data: any}} props */
function Verdict({ data }) {
  const found = statements(data);
  const refusals = (recorder.points.get("refusals") ?? []).reduce((most, { v }) => Math.max(most, v), 0);
  if (useStore(away) && !found.length) return null; // the bar at the top says it
  return html`<ul class="verdict" aria-label="State">
    ${data.away && html`<li><span>Only ${data.nodes.map(nodeName).join(", ")} has answered. It reports:</span></li>`}
    ${found.length
      ? found.slice(0, 8).map(({ kind, key, text }) => html`<li key=${key} class=${kind}><span>${text}</span></li>`)
      : html`<li class=${isMeasured() ? "ok" : ""}><span>${wellText(data)}</span></li>`}
    ${refusals >= 1 && html`<li><span>The server has refused requests in the last ten minutes. The <a href=${link("inspector", { what: "refused" })}>inspector</a> shows new refusals of an app with their reasons.${` At most ${rate(refusals)} a second were refused.`}</span></li>`}
    ${found.length > 8 && html`<li><span>${whole(found.length - 8)} more</span></li>`}
  </ul>`;
}

/** Says the state once a minute. @param {{data: any}} props */
function Summary({ data }) {
  const latest = useRef(data);
  latest.current = data;
  const [text, set] = useState("");
  useEffect(() => {
    const timer = setInterval(() => {
      const found = statements(latest.current).length;
      const connections = latest.current.nodes.reduce((/** @type {number} */ sum, /** @type {any} */ node) => sum + open(node), 0);
      set(`${count(connections, "connection")}, ${count(latest.current.nodes.length, "worker")}, ${found ? count(found, "statement needs attention", "statements need attention") : "nothing needs attention"}.`);
    }, SUMMARY_MS);
    return () => clearInterval(timer);
  }, []);
  return html`<p class="hidden" role="status">${text}</p>`;
}

/** @param {any} node @param {"rate" | "cpu"} key @param {(value: number) => string} show */
function measured(node, key, show) {
  const value = recorder.workers.get(node.id)?.[key];
  return node.silent || value === undefined ? "–" : show(value);
}

/** @param {{nodes: any[]}} props */
function Workers({ nodes }) {
  return html`<${Table}
    caption="Workers"
    rows=${nodes}
    id=${(/** @type {any} */ node) => node.id}
    columns=${WORKERS}
  />`;
}

/** @type {import("./ui.js").Column[]} */
const WORKERS = [
  { key: "id", label: "Worker", show: (node) => html`<${Name} of=${nodeName(node)} />` },
  {
    key: "state",
    label: "State",
    size: "s",
    show: (node) =>
      html`<${State} of=${node.silent ?? (node.draining ? "draining" : "ready")} />`,
  },
  { key: "connections", label: "Connections", size: "s", number: true, show: (node) => (node.silent ? "–" : short(open(node))) },
  { key: "rate", label: "Out /s", size: "xs", number: true, show: (node) => (measured(node, "rate", rate)) },
  { key: "cpu", label: "CPU", size: "xs", number: true, show: (node) => (measured(node, "cpu", percent)) },
  { key: "rss", label: "Memory", size: "s", number: true, show: (node) => (node.rss === null || node.rss === undefined ? "–" : bytes(node.rss)) },
  { key: "fds", label: "Files", size: "xs", number: true, show: (node) => (node.fds === null || node.fds === undefined ? "–" : whole(node.fds)) },
  { key: "loop_lag", label: "Loop lag", size: "s", number: true, show: (node) => (node.silent ? "–" : duration(node.loop_lag ?? 0)) },
  { key: "uptime", label: "Up", size: "s", number: true, show: (node) => (node.silent ? "–" : duration(node.uptime ?? 0)) },
];

/** @param {{nodes: any[]}} props */
function Protocols({ nodes }) {
  const sums = useMemo(() => {
    /** @type {Map<string, number>} */
    const found = new Map();
    for (const node of nodes) for (const [name, n] of Object.entries(node.connections ?? {})) found.set(name, (found.get(name) ?? 0) + Number(n));
    return [...found].sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, n]) => ({ name, n }));
  }, [nodes]);
  const total = sums.reduce((sum, { n }) => sum + n, 0);
  return html`<${Table}
    caption="Connections by protocol"
    rows=${sums}
    id=${(/** @type {any} */ row) => row.name}
    empty=${html`<${Empty} title="No client is connected" alone="No client is connected to this worker">Connect a client, for example with <code>push1st subscribe</code>.<//>`}
    columns=${[
      { key: "name", label: "Protocol", show: (/** @type {any} */ row) => protocolName(row.name) },
      { key: "n", label: "Connections", size: "m", number: true, show: (/** @type {any} */ row) => whole(row.n) },
      { key: "part", label: "Share", size: "s", number: true, show: (/** @type {any} */ row) => percent(row.n / (total || 1)) },
    ]}
  />`;
}
