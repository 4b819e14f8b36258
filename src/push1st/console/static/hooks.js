// @ts-check
/** The webhook endpoints of an app, the dead letters, and their redrive. */
import { html, useState } from "./vendor/htm-preact.js";
import { call, go, link, notice, path, useCall } from "./data.js";
import { bytes, count, date, duration, plain, short, whole } from "./text.js";
import { Badge, Choice, Confirm, Data, Dialog, Empty, Endpoint, Facts, Missing, Name, Pager, Screen, Section, Table, Text, Time, Unfound } from "./ui.js";

const LIMIT = 50;
/** @type {Record<string, string>} */
const REASONS = {
  overflowed: "queue was full",
  expired: "not accepted in time",
  stopped: "server has stopped",
  "endpoint-gone": "endpoint removed",
};

/** @param {{params: Record<string, string>}} props */
export function Hooks({ params }) {
  const { app, endpoint = "", after = "" } = params;
  const { data, error, busy, reload } = useCall(path(["apps", app, "hooks"]), 5);
  const endpoints = data?.hooks;
  // One worker has the queue of an endpoint, so a zero of another worker has no meaning.
  const isPart = data?.away || data?.missing.length > 0;
  /** @param {number | null | undefined} value */
  const figure = (value) => (value || !isPart ? short(value ?? 0) : "–");
  return html`<${Screen} title="Hooks" lead="The endpoints that the server notifies of events, and the hook events that it could not deliver.">
    <${Missing} data=${data} />
    <${Section} title="Endpoints" lead=${!data?.away ? "The numbers of delivered events are totals since the workers opened the endpoint." : `Only the worker ${data.from} has replied. An endpoint without events on this worker is unknown: another worker may have its queue.`}>
      <${Table}
        caption="Endpoints"
        rows=${endpoints}
        id=${(/** @type {any} */ row) => `${row.hook} ${row.removed}`}
        busy=${busy && !data}
        error=${error}
        again=${reload}
        bones=${2}
        empty=${html`<${Empty} title="This app has no hooks">In the configuration, add <code>webhooks:</code> to the app, and reload the server.<//>`}
        columns=${[
          { key: "endpoint", label: "Endpoint", wrap: true, show: (/** @type {any} */ row) => html`<${Endpoint} of=${row.endpoint} />${row.removed && html`<p class="faint">No longer in the configuration. The server still delivers what waits.</p>`}` },
          { key: "state", label: "State", size: "s", show: (/** @type {any} */ row) => state(row, isPart) },
          { key: "sent", label: "Delivered", size: "xs", number: true, show: (/** @type {any} */ row) => figure(row.sent) },
          { key: "queued", label: "Queued", size: "xs", number: true, show: (/** @type {any} */ row) => figure(row.queued) },
          { key: "oldest", label: "Oldest", size: "s", number: true, show: (/** @type {any} */ row) => (row.oldest_seconds ? duration(row.oldest_seconds) : "–") },
          { key: "next", label: "Next try in", size: "s", number: true, show: (/** @type {any} */ row) => (typeof row.next_try_in === "number" ? duration(row.next_try_in) : row.retrying ? "now" : "–") },
          { key: "last", label: "Last error", size: "l", wrap: true, show: (/** @type {any} */ row) => html`<${Name} of=${row.last_error} label=${isPart ? "unknown" : "none"} />${row.last_error && html` <span class="faint">at <${Time} at=${row.last_error_at} day /></span>`}` },
        ]}
      />
    <//>
    ${data && html`<${DeadLetters} app=${app} endpoint=${endpoint} after=${after} endpoints=${(endpoints ?? []).filter((/** @type {any} */ one) => !one.removed)} />`}
  <//>`;
}

/** @param {any} row @param {boolean} isPart whether some workers have not answered */
function state(row, isPart) {
  if (row.removed) return html`<${Badge} kind="warn">removed<//>`;
  if (row.failing || row.retrying) return html`<${Badge} kind=${row.failing ? "bad" : "warn"}>${row.retrying ? "retrying" : "failing"}<//>`;
  return row.queued ? html`<${Badge} kind="warn">sending<//>` : isPart ? html`<${Badge} kind="plain">unknown<//>` : html`<${Badge} kind="ok">idle<//>`;
}

/** @param {{app: string, endpoint: string, after: string, endpoints: any[]}} props */
function DeadLetters({ app, endpoint, after, endpoints }) {
  const { data, error, busy, reload } = useCall(path(["apps", app, "dead-letters"], { endpoint, after, limit: LIMIT }), 10);
  const [chosen, choose] = useState(/** @type {Set<string>} */ (new Set()));
  const [shown, show] = useState(/** @type {any} */ (null));
  const [asking, ask] = useState(false);
  const letters = data?.letters;
  const able = (letters ?? []).filter((/** @type {any} */ row) => row.redrivable);
  const picked = able.filter((/** @type {any} */ row) => chosen.has(row.id));
  /** @param {string} id */
  const toggle = (id) => {
    const next = new Set(chosen);
    if (!next.delete(id)) next.add(id);
    choose(next);
  };
  const state = picked.find((/** @type {any} */ row) => row.state)?.state;
  const all = able.length > 0 && picked.length === able.length;
  const redrive = async () => {
    const answer = await call("POST", path(["apps", app, "dead-letters", "redrive"]), { endpoint, ids: picked.map((/** @type {any} */ row) => row.id) });
    const reasons = Object.entries(answer.refusals ?? {}).map(([reason, n]) => `${whole(Number(n))} refused: ${reason}`);
    if (answer.unanswered) reasons.push(`${whole(answer.unanswered)} without an answer of their worker: the list shows later whether they were redriven`);
    notice.set([`${count(answer.queued, "dead letter")} queued for delivery`, ...reasons].join(", ") + ".");
    choose(new Set());
    reload();
  };
  const options = [["", "all endpoints"], ...endpoints.map((one) => [one.hook, plain(one.endpoint)])];
  const isOne = endpoints.length === 1 && !(letters ?? []).some((/** @type {any} */ row) => row.hook !== endpoints[0].hook);
  const actions = html`<button type="button" disabled=${!able.length} onClick=${() => choose(all ? new Set() : new Set(able.map((/** @type {any} */ row) => row.id)))}>
      ${all ? "Select none" : able.length === letters?.length ? "Select all on this page" : `Select the ${whole(able.length)} that can be redriven`}
    </button>
    <button type="button" class="primary" disabled=${!picked.length} onClick=${() => ask(true)}>Redrive ${picked.length ? `${whole(picked.length)} selected` : "selected"}</button>`;
  return html`<${Section} title="Dead letters" lead="Hook events that the server does not retry any more, the newest first. A redrive delivers them again." actions=${actions}>
    <${Missing} data=${data} />
    ${(data?.failed ?? []).map((/** @type {any} */ one) => html`<p class="problem" role="status">Without the dead letters of <b><${Text} of=${one.machine} /></b>: <${Text} of=${one.reason} /></p>`)}
    ${endpoints.length > 1 &&
    html`<div class="fields"><${Choice} label="Endpoint" value=${endpoint} put=${(/** @type {string} */ value) => go("hooks", { app, endpoint: value }, true)} options=${options} /></div>`}
    <${Table}
      caption="Dead letters"
      rows=${letters}
      id=${(/** @type {any} */ row) => row.id}
      busy=${busy && !data}
      error=${error}
      again=${reload}
      bones=${3}
      empty=${data?.folder === false
        ? html`<${Empty} title="The server keeps no dead letters">Set <code>hooks.folder</code> in the configuration to keep the hook events that cannot be delivered.<//>`
        : data?.complete === false
          ? html`<${Unfound} of="dead letters" />`
          : html`<${Empty} title="There are no dead letters" alone="This machine has no dead letters">${endpoints.length ? "The server has delivered each hook event, or still tries to." : "The app has no hooks."}<//>`}
      columns=${[
        {
          key: "pick",
          label: "Select",
          size: "box",
          show: (/** @type {any} */ row) =>
            html`<input type="checkbox" aria-label=${`Select the dead letter of ${date(row.at)}`} disabled=${!row.redrivable} title=${row.why_not} checked=${chosen.has(row.id)} onChange=${() => toggle(row.id)} />`,
        },
        { key: "at", label: "Time", size: "t", show: (/** @type {any} */ row) => html`<${Time} at=${row.at} day />` },
        { key: "events", label: "Events", size: "t", show: (/** @type {any} */ row) => html`<${Name} of=${names(row)} />` },
        { key: "channel", label: "Channel", show: (/** @type {any} */ row) => html`<${Name} of=${place(row)} />` },
        ...(isOne ? [] : [{ key: "endpoint", label: "Endpoint", wrap: true, show: (/** @type {any} */ row) => html`<${Endpoint} of=${row.endpoint} />` }]),
        {
          key: "reason",
          label: "Reason",
          size: "m",
          wrap: true,
          show: (/** @type {any} */ row) => html`<${Text} of=${reason(row)} />${row.redriven && html`<p class="faint">redriven at <${Time} at=${row.redriven.at} /></p>`}`,
        },
        {
          key: "more",
          label: "Details",
          size: "act",
          show: (/** @type {any} */ row) => html`<button type="button" class="cell-button" aria-label=${`Show the dead letter of ${date(row.at)}`} onClick=${() => show(row)}>Show</button>`,
        },
      ]}
    />
    <${Pager}
      data=${data}
      shown=${letters?.length ?? 0}
      noun=${letters?.length === 1 ? "dead letter" : "dead letters"}
      isFirst=${!after}
      whose="machine of"
      first=${link("hooks", { app, endpoint })}
      next=${data?.next ? link("hooks", { app, endpoint, after: data.next }) : null}
    />
    ${shown &&
    html`<${Dialog} title="Dead letter" close=${() => show(null)}>
      <${Facts}
        pairs=${[
          ["Time", date(shown.at)],
          ["Original time", date(shown.time_ms / 1000)],
          ["Reason", html`<${Text} of=${reason(shown)} /> <span class="faint">(<${Text} of=${shown.reason} />)</span>`],
          ["Endpoint", html`<${Endpoint} of=${shown.endpoint} />`, true],
          ["Channel", html`<${Name} of=${place(shown)} />`, true],
          ["Events", `${count(shown.event_count, "event")}, ${bytes(shown.bytes)}`],
          ["Machine", html`<${Text} of=${shown.machine} />`],
          ["Redriven", shown.redriven ? html`${date(shown.redriven.at)}, <${Text} of=${shown.redriven.result} />` : "no"],
          shown.why_not && ["Why not again", html`<${Text} of=${shown.why_not} />`],
        ]}
      />
      <${Data} of=${shown.data} label="Data of the dead letter" encoding=${shown.encoding} />
      ${shown.cut && html`<p class="note">The beginning of ${bytes(shown.bytes)}.</p>`}
    <//>`}
    ${asking &&
    html`<${Confirm} title=${`Redrive ${count(picked.length, "dead letter")}?`} verb="Redrive" kind="primary" act=${redrive} close=${() => ask(false)}>
      <p>The server queues the events again, the oldest first, and at most 100 letters a second. Each event follows the waiting events of its channel. The server redrives each letter once only.</p>
      ${state && html`<p class="warning">Events such as <code>${state}</code> report a state, which may have changed since. A backend that does not compare <code>time_ms</code> stores the old state as the current state.</p>`}
      ${endpoints.some((one) => one.failing && picked.some((/** @type {any} */ row) => row.hook === one.hook)) && html`<p class="warning">The endpoint did not accept the last delivery. The redrive retries a delivery immediately. If the endpoint still fails, the events may become dead letters again.</p>`}
    <//>`}
  <//>`;
}

/** Returns the channel of the first event of a dead letter, and its user. @param {any} row */
function place(row) {
  const { channel = "", user = "" } = row.events[0] ?? {};
  return user ? `${channel}, user ${user}` : channel;
}

/** Returns why the server gave up a dead letter. @param {any} row */
function reason(row) {
  return (REASONS[row.reason] ?? row.reason) + (row.error ? `: ${row.error}` : "");
}

/** Returns the events of a dead letter in one line. @param {any} row */
function names(row) {
  const first = row.event ?? row.events[0]?.name;
  if (!first) return "";
  const more = row.event_count > 1 ? ` + ${row.event_count - 1}` : "";
  return first + more;
}
