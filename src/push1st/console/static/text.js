// @ts-check
/** Text for people: numbers, sizes, times, and the text of clients with visible escapes. Nothing here touches the page. */

/** Characters that are invisible, reorder text (UAX #9) or break lines, and unpaired surrogates. */
const UNSAFE =
  /[\x00-\x1f\x7f-\x9f\u00ad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\ufff9-\ufffb\ud800-\udfff\u{e0000}-\u{e007f}]/gu;
const SHORT = new Map([
  ["\n", "\\n"],
  ["\r", "\\r"],
  ["\t", "\\t"],
]);
/** A narrow space that keeps a number and its unit on one line. */
const THIN = "\u202f";
const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const ONE = new Intl.NumberFormat("en", { maximumFractionDigits: 1, minimumFractionDigits: 1 });
const TWO = new Intl.NumberFormat("en", { maximumFractionDigits: 2, minimumFractionDigits: 2 });

/**
 * Returns the visible form of a character that `UNSAFE` matches.
 * @param {string} character
 */
export function escaped(character) {
  const code = /** @type {number} */ (character.codePointAt(0));
  return SHORT.get(character) ?? "U+" + code.toString(16).toUpperCase().padStart(4, "0");
}

/**
 * Splits a text into plain pieces and escapes: the pieces with odd indices are characters that must not be shown as they are.
 * @param {string} text
 * @param {boolean} [lines] whether line ends and tabs stay as they are
 * @returns {string[]}
 */
export function pieces(text, lines = false) {
  const found = [""];
  let end = 0;
  for (const match of text.matchAll(UNSAFE)) {
    if (lines && (match[0] === "\n" || match[0] === "\t")) continue;
    found[found.length - 1] += text.slice(end, match.index);
    found.push(match[0], "");
    end = match.index + match[0].length;
  }
  found[found.length - 1] += text.slice(end);
  return found;
}

const RIGHT_TO_LEFT = /[\p{Script=Hebrew}\p{Script=Arabic}\p{Script=Syriac}\p{Script=Thaana}\p{Script=Nko}]/gu;

/**
 * Returns the direction of a name, so that a name that is too long loses its end and not its beginning. Mixed names are shown in
 * their logical order, from left to right.
 * @param {string} text
 * @returns {"ltr" | "rtl"}
 */
export function direction(text) {
  const others = text.replace(RIGHT_TO_LEFT, "");
  return others !== text && !/\p{L}/u.test(others) ? "rtl" : "ltr";
}

/**
 * Returns a text as one line with visible escapes, for tooltips and attributes.
 * @param {string} text
 */
export function plain(text) {
  return text.replace(UNSAFE, escaped);
}

/** @param {number} value */
export function whole(value) {
  return WHOLE.format(value);
}

/**
 * Returns a number of at most seven characters: `12,345`, `1.23 M`.
 * @param {number} value
 */
export function short(value) {
  if (value >= 1e9) return TWO.format(value / 1e9) + THIN + "G";
  return value >= 1e6 ? TWO.format(value / 1e6) + THIN + "M" : WHOLE.format(value);
}

/**
 * Returns a rate per second.
 * @param {number} value
 */
export function rate(value) {
  return value > 0 && value < 10 ? ONE.format(value) : short(value);
}

/**
 * Returns a number of bytes with its unit.
 * @param {number} value
 */
export function bytes(value) {
  let unit = 0;
  while (Math.abs(value) >= 1024 && unit < 4) {
    value /= 1024;
    unit += 1;
  }
  const number = unit && Math.abs(value) < 100 ? ONE.format(value) : WHOLE.format(value);
  return number + THIN + ["B", "KiB", "MiB", "GiB", "TiB"][unit];
}

/**
 * Returns a duration by its two largest units.
 * @param {number} seconds
 */
export function duration(seconds) {
  if (seconds > 0 && seconds < 0.00005) return `< 0.1${THIN}ms`;
  if (seconds < 1) return (seconds > 0 && seconds < 0.00995 ? ONE : WHOLE).format(seconds * 1000) + THIN + "ms";
  if (seconds < 60) return WHOLE.format(Math.floor(seconds)) + THIN + "s";
  const units = /** @type {const} */ ([
    [86400, "d"],
    [3600, "h"],
    [60, "min"],
    [1, "s"],
  ]);
  const first = units.findIndex(([length]) => seconds >= length);
  const [length, name] = units[first];
  const text = WHOLE.format(Math.floor(seconds / length)) + THIN + name;
  const rest = Math.floor((seconds % length) / units[first + 1][0]);
  return rest ? `${text} ${rest}${THIN}${units[first + 1][1]}` : text;
}

/**
 * Returns a fraction as a percentage.
 * @param {number} fraction
 */
export function percent(fraction) {
  const value = fraction * 100;
  if (value > 0 && value < 0.05) return `< 0.1${THIN}%`;
  if (value > 99 && value < 100) return ONE.format(Math.min(99.9, value)) + THIN + "%";
  return (value > 0 && value < 9.95 ? ONE.format(value) : WHOLE.format(value)) + THIN + "%";
}

/** @param {number} number @param {number} [length] */
function two(number, length = 2) {
  return String(number).padStart(length, "0");
}

/**
 * Returns the local time of day, with milliseconds if `precise`.
 * @param {number} at seconds since 1970
 * @param {boolean} [precise]
 */
export function clock(at, precise = false) {
  const time = new Date(at * 1000);
  const text = `${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}`;
  return precise ? `${text}.${two(time.getMilliseconds(), 3)}` : text;
}

/**
 * Returns the local date and time.
 * @param {number} at seconds since 1970
 */
export function date(at) {
  const time = new Date(at * 1000);
  return `${time.getFullYear()}-${two(time.getMonth() + 1)}-${two(time.getDate())} ${clock(at)}`;
}

/**
 * Returns a count with its noun: `1 worker`, `2 workers`.
 * @param {number} count
 * @param {string} noun
 * @param {string} [plural]
 */
export function count(count, noun, plural = noun + "s") {
  return `${WHOLE.format(count)} ${count === 1 ? noun : plural}`;
}

/**
 * Returns the name of a node for people: its machine and the number of its worker.
 * @param {any} node
 */
export function nodeName(node) {
  return node.machine ? `${node.machine}:${node.worker}` : String(node.id);
}

/**
 * Orders nodes by machine, worker and id. Nodes without a known machine are last.
 * @param {any} a @param {any} b
 */
export function byNode(a, b) {
  const [one, two] = [a, b].map(({ machine, worker, id }) => [machine ?? "\uffff", String(worker ?? 0).padStart(5, "0"), id].join("\0"));
  return one < two ? -1 : 1;
}

/**
 * Returns the text of an error of the operating system without its number.
 * @param {string} text
 */
export function withoutNumber(text) {
  return text.replace(/^\[Errno \d+\] /, "");
}

/** @type {Record<string, string>} */
const PROTOCOLS = { pusher: "Pusher", "pusher-xhr": "Pusher, XHR", websocket: "WebSocket", mqtt: "MQTT 3.1.1", mqtt5: "MQTT 5", sse: "SSE" };

/**
 * Returns the name of a protocol for people.
 * @param {string} name
 */
export function protocolName(name) {
  return PROTOCOLS[name] ?? name;
}

/**
 * Returns JSON with indentation; the same text if it is not JSON. Pusher's data is often a string that contains JSON.
 * @param {string} text
 * @returns {string}
 */
export function pretty(text) {
  if (text.length > 200_000) return text;
  try {
    const value = JSON.parse(text);
    if (typeof value === "string") return text.startsWith('"') ? pretty(value) : text;
    return typeof value === "object" && value !== null ? JSON.stringify(value, null, 2) : text;
  } catch {
    return text;
  }
}
