// @ts-check
/** The event creator: publishes an event like a backend, and keeps the last twenty in memory. */
import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { away, call, link, path, useStore } from "./data.js";
import { bytes, clock, count } from "./text.js";
import { Badge, Choice, Empty, Name, Problem, Screen, Section, Table, Text } from "./ui.js";

const MAX_KEPT = 20;
const CHECK_MS = 200;
const START = '{\n  "message": "hello"\n}';

/** @typedef {{app: string, to: string, target: string, name: string, data: string}} Draft */

/** The draft and the events outlive the screen, but not the tab. @type {Draft} */
let draft = { app: "", to: "channel", target: "", name: "", data: START };
/** @type {any[]} */
let kept = [];
let number = 0;

/** @param {{params: Record<string, string>}} props */
export function Events({ params }) {
  const { app, channel, user } = params;
  const [form, set] = useState(draft);
  const [sent, setSent] = useState(kept);
  const [error, fail] = useState(/** @type {Error | null} */ (null));
  const [busy, work] = useState(false);
  const problem = useJson(form.data);
  const isAway = useStore(away);
  /** @param {Partial<Draft>} change */
  const put = (change) => {
    draft = { ...draft, ...change };
    set(draft);
  };
  useEffect(() => {
    if (channel) put({ to: "channel", target: channel });
    if (user) put({ to: "user", target: user });
  }, [channel, user]);
  const element = useRef(/** @type {HTMLFormElement | null} */ (null));
  const faulty = faultyField(error?.message ?? "");
  useEffect(() => {
    if (error) /** @type {HTMLElement | null | undefined} */ (element.current?.querySelector("[aria-invalid=true]"))?.focus();
  }, [error]);
  /** @param {Event} event */
  const submit = async (event) => {
    event.preventDefault();
    if (busy || isAway) return;
    work(true);
    fail(null);
    const form = draft;
    const target = form.to === "user" ? { user: form.target } : { channel: form.target };
    const data = json(form.data);
    const row = { id: ++number, at: Date.now() / 1000, app, form, bytes: size(data), result: "", kind: "ok" };
    try {
      const { channels, notes } = await call("POST", path(["apps", app, "events"]), `{"data":${data},${JSON.stringify({ name: form.name, ...target }).slice(1)}`);
      row.result = [`for ${count(Object.values(channels)[0], form.to === "user" ? "connection" : "subscriber")}`, ...notes].join("; ");
    } catch (refusal) {
      fail(/** @type {Error} */ (refusal));
      row.result = /** @type {Error} */ (refusal).message;
      row.kind = "bad";
    }
    kept = [row, ...kept].slice(0, MAX_KEPT);
    setSent(kept);
    work(false);
  };
  return html`<${Screen} title="Event creator" lead="Publishes an event as an unsigned call of the HTTP API would, within the limits of the app.">
    <form class="panel form" ref=${element} onSubmit=${submit}>
      <div class="fields">
        <${Choice} label="To" value=${form.to} put=${(/** @type {string} */ to) => put({ to })} options=${[["channel", "a channel"], ["user", "a user"]]} />
        <${Line} label=${form.to === "user" ? "User id" : "Channel"} search invalid=${faulty === "target"} value=${form.target} put=${(/** @type {string} */ target) => put({ target })} />
        <${Line} label="Event name" invalid=${faulty === "name"} value=${form.name} put=${(/** @type {string} */ name) => put({ name })} />
      </div>
      <label class="field">
        <span>Data</span>
        <textarea
          rows="8"
          spellcheck=${false}
          value=${form.data}
          aria-describedby=${faulty === "data" ? "refusal" : "json-state"}
          aria-invalid=${faulty === "data"}
          onInput=${(/** @type {any} */ event) => put({ data: event.target.value })}
        ></textarea>
      </label>
      <div class="submit">
        <p id="json-state" class=${problem || isAway ? "warning" : "note"} role="status">
          ${isAway ? "Nothing can be published while the broker is away." : problem ? html`This is not JSON (<${Text} of=${problem} />). The server publishes it as a string.` : `JSON, ${bytes(size(json(form.data)))} as sent`}
        </p>
        <button type="submit" class="primary" disabled=${isAway}>${busy ? "Publishing …" : "Publish"}</button>
      </div>
      ${error && html`<div id="refusal"><${Problem} error=${error} /></div>`}
    </form>
    <${Section} title="Sent from this tab" lead=${`The events of this app among the last ${MAX_KEPT}. The tab keeps them in memory until you close it. The number of subscribers may not include MQTT clients whose filters have wildcards or are shared.`}>
      <${Table}
        caption="Published events"
        rows=${sent.filter((row) => row.app === app)}
        id=${(/** @type {any} */ row) => row.id}
        empty=${html`<${Empty} title="Nothing sent yet">Fill in the form and select “Publish”. <a href=${link("inspector", { app })}>The inspector</a> shows how the event arrives.<//>`}
        columns=${[
          { key: "at", label: "Time", size: "s", show: (/** @type {any} */ row) => clock(row.at) },
          {
            key: "target",
            label: "To",
            show: (/** @type {any} */ row) =>
              html`<${Name} of=${row.form.target} href=${row.kind !== "ok" ? undefined : row.form.to === "user" ? link("connections", { app: row.app, user: row.form.target }) : link("channel", { app: row.app, name: row.form.target })} />`,
          },
          { key: "name", label: "Event", size: "l", show: (/** @type {any} */ row) => html`<${Name} of=${row.form.name} />` },
          { key: "bytes", label: "Size", size: "s", number: true, show: (/** @type {any} */ row) => bytes(row.bytes) },
          {
            key: "result",
            label: "Result",
            size: "l",
            wrap: true,
            show: (/** @type {any} */ row) => html`<${Badge} kind=${row.kind}>${row.kind === "ok" ? "published" : "refused"}<//> <${Text} of=${row.result} />`,
          },
          {
            key: "again",
            label: "Action",
            size: "act wide",
            show: (/** @type {any} */ row) =>
              html`<button type="button" class="cell-button" aria-label=${`Use again the event of ${clock(row.at)}`} onClick=${() => put(row.form)}>Use again</button>`,
          },
        ]}
      />
    <//>
  <//>`;
}

/** Returns the data of an event as JSON: a text that is JSON stays as it is, any other text becomes a string. @param {string} text */
function json(text) {
  try {
    JSON.parse(text);
    return text.trim();
  } catch {
    return JSON.stringify(text);
  }
}

/** Returns the number of bytes of a text. @param {string} text */
function size(text) {
  return new Blob([text]).size;
}

/** @param {{label: string, value: string, put: (text: string) => void, search?: boolean, invalid?: boolean}} props */
function Line({ label, value, put, search = false, invalid = false }) {
  return html`<label class="field wide">
    <span>${label}</span>
    <input
      type="text"
      required
      aria-invalid=${invalid}
      aria-describedby=${invalid ? "refusal" : undefined}
      value=${value}
      data-search=${search ? "" : undefined}
      autocomplete="off"
      spellcheck=${false}
      onInput=${(/** @type {any} */ event) => put(event.target.value)}
    />
  </label>`;
}

/** Returns the field that a refusal of the server is about; "" if it is about none. @param {string} refusal */
function faultyField(refusal) {
  if (/^(a )?channel|^user/i.test(refusal)) return "target";
  if (/^name |^event name/.test(refusal)) return "name";
  return /^The data /.test(refusal) ? "data" : "";
}

/** Returns why a text is not JSON, a moment after its last change; "" if it is JSON. @param {string} text */
function useJson(text) {
  const [problem, set] = useState("");
  useEffect(() => {
    const timer = setTimeout(() => {
      try {
        JSON.parse(text);
        set("");
      } catch (error) {
        set(/** @type {Error} */ (error).message.slice(0, 120));
      }
    }, CHECK_MS);
    return () => clearTimeout(timer);
  }, [text]);
  return problem;
}
