// @ts-check
/** The webhook endpoints of an app, the dead letters, and their redrive. */
import { html, useState } from "./vendor/htm-preact.js";
import { call, go, link, notice, path, useCall } from "./data.js";
import { bytes, count, date, duration, plain, short, whole } from "./text.js";
import { Badge, Choice, Confirm, Data, Dialog, Empty, Facts, Missing, Name, Pager, Screen, Section, Table, Text, Time } from "./ui.js";

const LIMIT = 50;

/** @param {{params: Record<string, string>}} props */
export function Hooks({ params }) {
  const { app, endpoint = "", after = "" } = params;
  const { data, error, busy, reload } = useCall(path(["apps", app, "hooks"]), 5);
  const endpoints = data?.endpoints ?? data?.hooks;
  return html`<${Screen} title="Hooks" lead="The endpoints that the server notifies of events, and the hook events that it could not deliver.">
    <${Missing} data=${data} />
    <${Section} title="Endpoints">
      <${Table}
        caption="Endpoints"
        rows=${endpoints}
        id=${(/** @type {any} */ row) => row.endpoint}
        busy=${busy && !data}
        error=${error}
        again=${reload}
        bones=${2}
        empty=${html`<${Empty} title="This app has no hooks">Add <code>webhooks</code> or <code>hooks</code> to the app in the configuration, and reload the server.<//>`}
        columns=${[
          { key: "endpoint", label: "Endpoint", show: (/** @type {any} */ row) => html`<${Name} of=${row.endpoint} />` },
          { key: "state", label: "State", size: "s", show: state },
          { key: "queued", label: "Queued", size: "s", number: true, show: (/** @type {any} */ row) => short(row.queued ?? 0) },
          { key: "oldest", label: "Oldest", size: "s", number: true, show: (/** @type {any} */ row) => (row.oldest_seconds ? duration(row.oldest_seconds) : "–") },
          { key: "next", label: "Next try in", size: "s", number: true, show: (/** @type {any} */ row) => (row.next_try_in === null || row.next_try_in === undefined ? "–" : duration(row.next_try_in)) },
          { key: "last", label: "Last error", size: "l", show: (/** @type {any} */ row) => html`<${Name} of=${row.last_error} label="none" />` },
        ]}
      />
    <//>
    <${DeadLetters} app=${app} endpoint=${endpoint} after=${after} endpoints=${endpoints ?? []} />
  <//>`;
}

/** @param {any} row */
function state(row) {
  if (row.last_error) return html`<${Badge} kind="bad">failing${row.last_status ? ` (${row.last_status})` : ""}<//>`;
  return row.queued ? html`<${Badge} kind="warn">sending<//>` : html`<${Badge} kind="ok">idle<//>`;
}

/** @param {{app: string, endpoint: string, after: string, endpoints: any[]}} props */
function DeadLetters({ app, endpoint, after, endpoints }) {
  const { data, error, busy, reload } = useCall(path(["apps", app, "dead-letters"], { endpoint, after, limit: LIMIT }), 10);
  const [chosen, choose] = useState(/** @type {Set<string>} */ (new Set()));
  const [shown, show] = useState(/** @type {any} */ (null));
  const [asking, ask] = useState(false);
  const letters = data?.letters ?? data?.dead_letters;
  const picked = (letters ?? []).filter((/** @type {any} */ row) => chosen.has(row.id));
  /** @param {string} id */
  const toggle = (id) => {
    const next = new Set(chosen);
    if (!next.delete(id)) next.add(id);
    choose(next);
  };
  const all = letters?.length > 0 && picked.length === letters.length;
  const redrive = async () => {
    /** @type {Map<string, string[]>} */
    const groups = new Map();
    for (const row of picked) groups.set(row.endpoint, [...(groups.get(row.endpoint) ?? []), row.id]);
    let queued = 0;
    let refused = 0;
    for (const [one, ids] of groups) {
      const answer = await call("POST", path(["apps", app, "dead-letters", "redrive"]), { endpoint: one, ids });
      queued += size(answer.queued);
      refused += size(answer.refused);
    }
    notice.set(`${count(queued, "dead letter")} queued for delivery${refused ? `, ${whole(refused)} refused: already redriven, or the endpoint is gone` : ""}.`);
    choose(new Set());
    reload();
  };
  const options = [["", "all endpoints"], ...endpoints.map((one) => [one.endpoint, plain(one.endpoint)])];
  const actions = html`<button type="button" disabled=${!letters?.length} onClick=${() => choose(all ? new Set() : new Set(letters.map((/** @type {any} */ row) => row.id)))}>
      ${all ? "Select none" : "Select all"}
    </button>
    <button type="button" class="primary" disabled=${!picked.length} onClick=${() => ask(true)}>Redrive ${picked.length ? whole(picked.length) : ""}</button>`;
  return html`<${Section} title="Dead letters" lead="Hook events that the server gave up on, the newest first. A redrive queues them again." actions=${actions}>
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
      empty=${html`<${Empty} title="There are no dead letters">The server has delivered each hook event, or still tries to.<//>`}
      columns=${[
        {
          key: "pick",
          label: "Select",
          size: "xs",
          show: (/** @type {any} */ row) => html`<input type="checkbox" aria-label=${`Select the dead letter of ${date(row.at)}`} checked=${chosen.has(row.id)} onChange=${() => toggle(row.id)} />`,
        },
        { key: "at", label: "Time", size: "m", show: (/** @type {any} */ row) => html`<${Time} at=${row.at} />` },
        { key: "event", label: "Event", size: "m", show: (/** @type {any} */ row) => html`<${Name} of=${row.event ?? row.name} />` },
        { key: "endpoint", label: "Endpoint", show: (/** @type {any} */ row) => html`<${Name} of=${row.endpoint} />` },
        { key: "reason", label: "Reason", size: "l", show: (/** @type {any} */ row) => html`<${Name} of=${row.reason} />` },
        {
          key: "more",
          label: "Details",
          size: "s",
          show: (/** @type {any} */ row) => html`<button type="button" class="cell-button" aria-label=${`Show the dead letter of ${date(row.at)}`} onClick=${() => show(row)}>Show</button>`,
        },
      ]}
    />
    <${Pager}
      data=${data}
      shown=${letters?.length ?? 0}
      noun=${letters?.length === 1 ? "dead letter" : "dead letters"}
      isFirst=${!after}
      first=${link("hooks", { app, endpoint })}
      next=${data?.next ? link("hooks", { app, endpoint, after: data.next }) : null}
    />
    ${shown &&
    html`<${Dialog} title="Dead letter" close=${() => show(null)}>
      <${Facts}
        pairs=${[
          ["Time", date(shown.at)],
          ["Event", html`<${Name} of=${shown.event ?? shown.name} />`],
          ["Endpoint", html`<${Text} of=${shown.endpoint} />`],
          ["Reason", html`<${Text} of=${shown.reason} />`],
          shown.attempts !== undefined && ["Attempts", whole(shown.attempts)],
          shown.bytes !== undefined && ["Size", bytes(shown.bytes)],
        ]}
      />
      ${(shown.data ?? shown.body) !== undefined && html`<${Data} of=${shown.data ?? shown.body} label="Data of the dead letter" encoding=${shown.encoding} />`}
    <//>`}
    ${asking &&
    html`<${Confirm} title=${`Redrive ${count(picked.length, "dead letter")}?`} verb="Redrive" act=${redrive} close=${() => ask(false)}>
      <p>The server queues them in the order they had, after what already waits, and delivers up to 100 a second. Each is delivered at most once more.</p>
    <//>`}
  <//>`;
}

/** @param {any} value a count, or a list */
function size(value) {
  return Array.isArray(value) ? value.length : (value ?? 0);
}
