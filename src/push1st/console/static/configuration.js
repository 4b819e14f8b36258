// @ts-check
/** The effective configuration with the origin of each key, and what is wrong with it. */
import { html, useState } from "./vendor/htm-preact.js";
import { go, link, useCall } from "./data.js";
import { bytes, count, date, duration } from "./text.js";
import { Badge, Check, Empty, Filter, Loading, Missing, Name, Problem, Screen, Section, Table, Text } from "./ui.js";

const PAGE = 200;

/** @param {{params: Record<string, string>}} props */
export function Configuration({ params }) {
  const { search = "", set = "" } = params;
  const { data, error, reload } = useCall("config", 10);
  const lead = html`The settings that ${data ? `the worker ${data.from}` : "the server"} applies now${data?.file && html`, from <code><${Text} of=${data.file} /></code>`}. Secrets are shown by their length only.`;
  return html`<${Screen} title="Configuration" lead=${lead}>
    ${error && html`<${Problem} error=${error} again=${reload} />`}
    <${Missing} data=${data} />
    ${!data && !error && html`<${Loading} rows=${8} />`}
    ${data &&
    html`<${Section} title="Warnings" lead=${data.warnings?.length ? "Probably mistakes, or a risk: change them." : "No setting needs a change."}>
        <${Lines} of=${data.warnings} kind="warn" />
      <//>
      ${data.notes?.length > 0 &&
      html`<${Section} title="Notes" lead="Valid settings with effects that you may not expect. Change them only if you do not want the effect."><${Lines} of=${data.notes} /><//>`}
      <${Section} title="Last reload"><${Reload} reload=${data.reload} /><//>
      <${Section} title="Listeners">
        <${Table}
          caption="Listeners"
          rows=${data.listeners ?? []}
          id=${(/** @type {any} */ row) => `${row.role} ${row.address}`}
          columns=${[
            { key: "role", label: "Role", size: "m" },
            { key: "address", label: "Address", wrap: true, show: (/** @type {any} */ row) => html`<${Name} of=${row.address} />` },
            { key: "tls", label: "TLS", size: "s", show: (/** @type {any} */ row) => (row.tls ? html`<${Badge} kind="ok">TLS<//>` : html`<${Badge} kind="plain">none<//>`) },
          ]}
        />
      <//>
      <${Section} title="Certificates">
        <${Table}
          caption="Certificates"
          rows=${data.certificates ?? []}
          id=${(/** @type {any} */ row) => `${row.listener} ${row.file}`}
          empty=${html`<p class="note">No listener uses TLS.</p>`}
          columns=${[
            { key: "listener", label: "Listener", size: "m" },
            { key: "file", label: "File", wrap: true, show: (/** @type {any} */ row) => html`<${Name} of=${row.file} />` },
            { key: "expires", label: "Expires", size: "t", show: (/** @type {any} */ row) => date(row.expires) },
            {
              key: "days",
              label: "Left",
              size: "s",
              number: true,
              show: (/** @type {any} */ row) => html`<${Badge} kind=${row.days < 0 ? "bad" : row.days < 14 ? "warn" : "ok"}>${row.days < 0 ? "expired" : count(row.days, "day")}<//>`,
            },
          ]}
        />
      <//>
      <${Keys} settings=${data.settings ?? []} search=${search} set=${set} />`}
  <//>`;
}

/** @param {{reload: any}} props */
function Reload({ reload }) {
  if (!reload) return html`<p class="note">The configuration was not reloaded since the start of the server.</p>`;
  if (!reload.problems?.length) return html`<p><${Badge} kind="ok">applied<//> ${date(reload.at)}</p>`;
  return html`<p><${Badge} kind="bad">failed<//> ${date(reload.at)}</p>
    <${Lines} of=${reload.problems} kind="bad" />`;
}

/** @param {{of: string[] | undefined, kind?: string}} props */
function Lines({ of, kind = "" }) {
  return of?.length ? html`<ul class="panel verdict">${of.map((text) => html`<li class=${kind} key=${text}><span><${Text} of=${text} /></span></li>`)}</ul>` : null;
}

/** @param {{settings: any[], search: string, set: string}} props */
function Keys({ settings, search, set }) {
  const [most, setMost] = useState(PAGE);
  const words = search.toLowerCase();
  const given = set ? settings.filter((one) => one.origin !== "default") : settings;
  const found = given.filter((one) => !words || one.key.toLowerCase().includes(words) || show(one.value).toLowerCase().includes(words) || String(one.origin).toLowerCase().includes(words));
  const rest = found.length - most;
  return html`<${Section} title="Keys" lead=${html`The keys of the server. Those of an app are in its details: select Show in <a href=${link("apps")}>the list of apps</a>.`}>
    <div class="fields">
      <${Filter} label="Key, value or origin" search wide value=${search} put=${(/** @type {string} */ text) => go("configuration", { search: text, set }, true)} />
      <${Check} label="Only keys that are set" value=${Boolean(set)} put=${(/** @type {boolean} */ is) => go("configuration", { search, set: is }, true)} />
    </div>
    <${Table}
      caption="Keys of the configuration"
      rows=${found.slice(0, most)}
      id=${(/** @type {any} */ row) => row.key}
      empty=${html`<${Empty} title="No key matches">Change the search, or clear it.<//>`}
      columns=${[
        { key: "key", label: "Key", show: (/** @type {any} */ row) => html`<${Name} of=${row.key} />` },
        { key: "value", label: "Value", wrap: true, show: (/** @type {any} */ row) => html`<${Name} of=${show(row.value) + unit(row)} label="empty" />` },
        { key: "origin", label: "Origin", show: (/** @type {any} */ row) => (row.origin === "default" ? html`<span class="faint">default</span>` : html`<${Name} of=${row.origin} />`) },
      ]}
    />
    ${rest > 0 && html`<p class="pager"><button type="button" onClick=${() => setMost(most + PAGE)}>Show ${count(Math.min(rest, PAGE), "more key")}</button></p>`}
  <//>`;
}

/** Returns the value in a larger unit. @param {any} row */
function unit({ key, value }) {
  if (typeof value !== "number") return "";
  if (/(payload|outbox|bytes)$/.test(key)) return ` (${bytes(value)})`;
  return !/(timeout|expiry|drain)$/.test(key) ? "" : value < 60 ? " s" : ` (${duration(value)})`;
}

/** @param {any} value @returns {string} */
function show(value) {
  if (Array.isArray(value)) return value.map(show).join(", ");
  return value === null || value === undefined ? "" : typeof value === "object" ? JSON.stringify(value) : String(value);
}
