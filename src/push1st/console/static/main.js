// @ts-check
/** The frame of all screens: sign-in, navigation, keyboard, theme, help, and the notice bar. */
import { html, render, useEffect, useErrorBoundary, useLayoutEffect, useState } from "./vendor/htm-preact.js";
import { away, awaySince, checkSession, go, link, liveFull, liveState, lostAt, notice, path, route, session, signOut, useCall, useStore } from "./data.js";
import { clock, plain, withoutNumber } from "./text.js";
import { Dialog, Loading, Name, Problem, Screen, Text } from "./ui.js";
import { Overview } from "./overview.js";
import { SignIn } from "./signin.js";

const MAX_LISTED_APPS = 50;
const CHORD_MS = 1500;
const NOTICE_MS = 8000;

/**
 * @typedef {object} Entry
 * @property {string} screen
 * @property {string} label
 * @property {string} key the second key of the shortcut
 * @property {boolean} [app] whether the screen shows one app
 * @property {string[]} [also] screens that are part of this one
 */
/** @type {Entry[]} */
const ENTRIES = [
  { screen: "overview", label: "Overview", key: "o" },
  { screen: "apps", label: "Apps", key: "a" },
  { screen: "channels", label: "Channels", key: "c", app: true, also: ["channel"] },
  { screen: "connections", label: "Connections", key: "n", app: true },
  { screen: "events", label: "Event creator", key: "e", app: true },
  { screen: "inspector", label: "Inspector", key: "i", app: true },
  { screen: "hooks", label: "Hooks", key: "h", app: true },
  { screen: "mqtt", label: "MQTT", key: "m", app: true },
  { screen: "cluster", label: "Cluster", key: "l" },
  { screen: "configuration", label: "Configuration", key: "s" },
];

/** The modules of the screens; the overview is loaded with the frame. @type {Record<string, () => Promise<(props: any) => any>>} */
const SCREENS = {
  overview: async () => Overview,
  apps: async () => (await import("./apps.js")).Apps,
  channels: async () => (await import("./channels.js")).Channels,
  channel: async () => (await import("./channel.js")).Channel,
  connections: async () => (await import("./connections.js")).Connections,
  events: async () => (await import("./events.js")).Events,
  inspector: async () => (await import("./inspector.js")).Inspector,
  hooks: async () => (await import("./hooks.js")).Hooks,
  mqtt: async () => (await import("./mqtt.js")).Mqtt,
  cluster: async () => (await import("./cluster.js")).Cluster,
  configuration: async () => (await import("./configuration.js")).Configuration,
};
/** The screens that are loaded. @type {Record<string, (props: any) => any>} */
const loaded = { overview: Overview };

/** The app of the screens that show one app; "" before it is known. */
let chosen = "";

function Frame() {
  const state = useStore(session);
  const [error, fail] = useState(/** @type {Error | null} */ (null));
  const check = () => {
    fail(null);
    checkSession().catch(fail);
  };
  useEffect(check, []);
  if (state === "out") return html`<${SignIn} />`;
  if (state === "unknown") return error ? html`<main class="signin"><${Problem} error=${error} again=${check} /></main>` : null;
  return html`<${Shell} />`;
}

function Shell() {
  const { screen, params } = useStore(route);
  const [open, setOpen] = useState(false);
  const [help, setHelp] = useState(false);
  const { data: apps, error, reload } = useCall(path(["apps"], { limit: MAX_LISTED_APPS }));
  const listed = apps?.apps ?? [];
  if (params.app) chosen = params.app;
  else if (!chosen && listed.length) chosen = listed[0].id;
  const entry = ENTRIES.find((one) => one.screen === screen || one.also?.includes(screen));
  useKeys(setHelp, () => setOpen(false));
  useEffect(() => setOpen(false), [screen]);
  useLayoutEffect(() => scrollTo(0, 0), [screen]);
  const isMissing = entry?.app && !params.app && !chosen;
  return html`<a class="skip" href="#main" onClick=${skip}>Skip to the contents</a>
    <header class="bar">
      <a class="mark" href=${link("overview")}><${Mark} />Push1st</a>
      <button type="button" class="menu" aria-expanded=${open} aria-controls="side" onClick=${() => setOpen(!open)}>${open ? "Close" : "Menu"}</button>
    </header>
    <div class=${open ? "side open" : "side"} id="side">
      <nav aria-label="Screens">
        <ul>
          ${ENTRIES.map((one, i) => {
            const starts = one.app && !ENTRIES[i - 1].app;
            const ends = !one.app && i > 0 && ENTRIES[i - 1].app;
            return html`${starts && html`<li class="chooser" key="app"><${AppChooser} apps=${listed} total=${apps?.total ?? listed.length} screen=${screen} entry=${entry} /></li>`}
              <li key=${one.screen} class=${ends ? "apart" : ""}>
                <a
                  href=${link(one.screen, one.app && chosen ? { app: chosen } : {})}
                  aria-current=${one === entry ? "page" : undefined}
                  aria-keyshortcuts=${`g ${one.key}`}
                >
                  ${one.label}<kbd aria-hidden="true">${one.key}</kbd>
                </a>
              </li>`;
          })}
        </ul>
      </nav>
      <footer class="foot">
        <${Theme} />
        <div class="row">
          <button type="button" class="quiet" onClick=${() => setHelp(true)}>Help <kbd aria-hidden="true">?</kbd></button>
          <button type="button" class="quiet" onClick=${signOut}>Sign out</button>
        </div>
        <${Version} />
      </footer>
    </div>
    <main id="main" tabindex="-1">
      <${Alerts} screen=${screen} />
      ${isMissing
        ? error
          ? html`<${Screen} title=${entry.label}><${Problem} error=${error} again=${reload} /><//>`
          : apps
            ? html`<${Screen} title=${entry.label} lead="This server has no app. Add one to the configuration, and reload the server." />`
            : html`<${Screen} title=${entry.label}><${Loading} /><//>`
        : html`<${Body} key=${screen} screen=${screen} params=${entry?.app ? { app: chosen, ...params } : params} />`}
    </main>
    <${Notices} />
    ${help && html`<${Help} close=${() => setHelp(false)} />`}`;
}

/** @param {Event} event */
function skip(event) {
  event.preventDefault();
  document.getElementById("main")?.focus();
}

/** Loads a screen and shows it. @param {{screen: string, params: Record<string, string>}} props */
function Body({ screen, params }) {
  const [, again] = useState(0);
  const [failed, fail] = useState(/** @type {Error | null} */ (null));
  const [broken, reset] = useErrorBoundary();
  useEffect(() => {
    if (loaded[screen] || !(screen in SCREENS)) return;
    SCREENS[screen]().then(
      (found) => {
        loaded[screen] = found;
        again((n) => n + 1);
      },
      () => fail(new Error("The console is not complete: the server does not send one of its files. Load the tab again.")),
    );
  }, [screen, failed]);
  if (broken) console.error(broken);
  if (broken) return html`<${Screen} title="This screen has a defect"><${Problem} error=${broken} again=${reset} /><//>`;
  if (!(screen in SCREENS)) {
    return html`<${Screen} title="There is no such screen" lead=${html`The address names none of the screens. <a href=${link("overview")}>Go to the overview</a>.`} />`;
  }
  if (failed) return html`<${Screen} title="Not loaded"><${Problem} error=${failed} again=${() => location.reload()} /><//>`;
  const Found = loaded[screen];
  return Found ? html`<${Found} params=${params} />` : html`<${Loading} rows=${8} />`;
}

/**
 * The keyboard: `/` goes to the search, `g` and a letter to a screen, `?` shows the help.
 * @param {(open: boolean) => void} setHelp
 * @param {() => void} closeMenu
 */
function useKeys(setHelp, closeMenu) {
  useEffect(() => {
    let chord = 0;
    /** @param {KeyboardEvent} event */
    const press = (event) => {
      const target = /** @type {HTMLElement} */ (event.target);
      if (event.key === "Escape") closeMenu();
      if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || document.querySelector("dialog[open]")) return;
      if (target.closest("input:not([type=checkbox], [type=radio]), textarea, select")) return;
      if (chord && event.timeStamp - chord < CHORD_MS) {
        chord = 0;
        const entry = ENTRIES.find((one) => one.key === event.key);
        if (entry) {
          event.preventDefault();
          go(entry.screen, entry.app && chosen ? { app: chosen } : {});
          return;
        }
      }
      chord = event.key === "g" ? event.timeStamp : 0;
      if (event.key === "?") {
        event.preventDefault();
        setHelp(true);
      } else if (event.key === "/") {
        const field = /** @type {HTMLElement | null} */ (document.querySelector("main [data-search]"));
        if (field) event.preventDefault();
        field?.focus();
      }
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  }, []);
}

/**
 * The choice of the app that the screens of an app show.
 * @param {{apps: any[], total: number, screen: string, entry: Entry | undefined}} props
 */
function AppChooser({ apps, total, screen, entry }) {
  if (total <= MAX_LISTED_APPS && apps.some((one) => one.id === chosen)) {
    return html`<label>
      <span>App</span>
      <select
        value=${chosen}
        title=${plain(chosen)}
        onChange=${(/** @type {any} */ event) => {
          chosen = event.target.value;
          const target = entry?.app ? entry.screen : screen === "overview" ? "channels" : screen;
          go(entry?.app ? target : "channels", { app: chosen });
        }}
      >
        ${apps.map((one) => html`<option key=${one.id} value=${one.id} selected=${one.id === chosen}>${plain(one.id)}</option>`)}
      </select>
    </label>`;
  }
  return html`<p><span>App</span> <a href=${link("apps")}><${Name} of=${chosen} label="none" /> <b>${chosen ? "Change" : "Choose"}</b></a></p>`;
}

function Theme() {
  const root = document.documentElement;
  const [theme, set] = useState(root.dataset.theme ?? "auto");
  /** @param {string} next */
  const choose = (next) => {
    set(next);
    if (next === "auto") delete root.dataset.theme;
    else root.dataset.theme = next;
    try {
      if (next === "auto") localStorage.removeItem("push1st-theme");
      else localStorage.setItem("push1st-theme", next);
    } catch {
      // The browser forbids storage: the choice ends with the tab.
    }
  };
  return html`<fieldset class="theme">
    <legend class="hidden">Theme</legend>
    ${[["auto", "Auto"], ["light", "Light"], ["dark", "Dark"]].map(
      ([key, label]) =>
        html`<label key=${key}><input type="radio" name="theme" checked=${theme === key} onChange=${() => choose(key)} /><span>${label}</span></label>`,
    )}
  </fieldset>`;
}

function Version() {
  const { data } = useCall("version", 5); // so that each screen shows within seconds whether the broker is away
  const state = useStore(liveState);
  const lost = useStore(lostAt);
  const isAway = useStore(away);
  const text = lost ? `no answer since ${clock(lost)}` : isAway ? "broker away" : { idle: "", connecting: "connecting", open: "live", waiting: "no live connection" }[state];
  return html`<p class="version"><span>${data ? `Push1st ${data.version}` : ""}</span><span class=${`dot ${lost || isAway ? "waiting" : state}`}>${text}</span></p>`;
}

/** The bar at the top: what concerns every screen. @param {{screen: string}} props */
function Alerts({ screen }) {
  const reason = useStore(away);
  const state = useStore(liveState);
  const full = useStore(liveFull);
  const [late, setLate] = useState(false);
  useEffect(() => {
    const timer = state === "waiting" || state === "connecting" ? setTimeout(() => setLate(true), full ? 0 : 2500) : 0;
    if (!timer) setLate(false);
    return () => clearTimeout(timer);
  }, [state, full]);
  const lost =
    late &&
    (full
      ? `This tab has no live connection: ${full}. Close other tabs of the console.`
      : "The live connection is interrupted. The console reconnects; until then, figures are older than usual.");
  return html`<div class="alerts" role="status">
    ${reason &&
    html`<p class="bad">
      <strong>The broker is away since ${clock(awaySince())}.</strong> Each screen shows only the worker that answered it, and the server rejects publishes.
      Reason: <${Text} of=${withoutNumber(reason)} />. ${screen !== "cluster" && html`<a href=${link("cluster")}>Cluster</a>`}
    </p>`}
    ${lost && html`<p class="warn">${lost}</p>`}
  </div>`;
}

/** The bar at the bottom: the result of the last action. */
function Notices() {
  const text = useStore(notice);
  useEffect(() => {
    const timer = text ? setTimeout(() => notice.set(""), NOTICE_MS) : 0;
    return () => clearTimeout(timer);
  }, [text]);
  return html`<div class="notices" role="status">${text && html`<p class="plain"><${Text} of=${text} /></p>`}</div>`;
}

/** @param {{close: () => void}} props */
function Help({ close }) {
  return html`<${Dialog} title="Keyboard" close=${close}>
    <dl class="keys">
      <div><dt><kbd>/</kbd></dt><dd>Go to the search field of the screen</dd></div>
      ${ENTRIES.map((one) => html`<div key=${one.key}><dt><kbd>g</kbd> <kbd>${one.key}</kbd></dt><dd>${one.label}</dd></div>`)}
      <div><dt><kbd>?</kbd></dt><dd>This help</dd></div>
      <div><dt><kbd>Esc</kbd></dt><dd>Close a dialog or the menu</dd></div>
    </dl>
    <p class="note">The address contains the screen, its filters and the page of the list. Other operators can open the same address.</p>
  <//>`;
}

export function Mark() {
  return html`<svg class="logo" viewBox="0 0 32 32" aria-hidden="true">
    <path d="M9 16h4" /><path d="M17 9a10 10 0 0 1 0 14" /><path class="outer" d="M22 5.500a15 15 0 0 1 0 21" />
  </svg>`;
}

render(html`<${Frame} />`, /** @type {Element} */ (document.getElementById("page")));
session.listen(() => session.value === "in" && setTimeout(() => Object.values(SCREENS).forEach((load) => load().catch(() => {})), 1000));
