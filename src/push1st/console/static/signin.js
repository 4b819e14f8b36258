// @ts-check
/** The sign-in. The password is sent once and kept nowhere. */
import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { CallError, hasEnded, signIn } from "./data.js";
import { count } from "./text.js";
import { Text } from "./ui.js";

export function SignIn() {
  const field = useRef(/** @type {HTMLInputElement | null} */ (null));
  const [error, fail] = useState("");
  const [busy, work] = useState(false);
  const [wait, setWait] = useState(0);
  useEffect(() => {
    document.title = "Sign in · Push1st";
    field.current?.focus();
  }, []);
  useEffect(() => {
    const timer = wait > 0 ? setTimeout(() => setWait(wait - 1), 1000) : 0;
    return () => clearTimeout(timer);
  }, [wait]);
  /** @param {Event} event */
  const submit = async (event) => {
    event.preventDefault();
    if (busy || wait) return;
    work(true);
    fail("");
    try {
      await signIn(field.current?.value ?? "");
    } catch (problem) {
      const refusal = /** @type {CallError} */ (problem);
      work(false);
      setWait(refusal.status === 429 ? refusal.retry : 0);
      const isLate = refusal.status === 429 && refusal.retry > 0; // this screen shows how long to wait
      fail(refusal.status === 401 ? "The password is wrong." : isLate ? `${refusal.message.split(":")[0]}.` : refusal.message);
      field.current?.select();
      field.current?.focus();
    }
  };
  return html`<main class="signin">
    <form onSubmit=${submit}>
      <svg class="logo" viewBox="0 0 32 32" aria-hidden="true"><path d="M9 16h4" /><path d="M17 9a10 10 0 0 1 0 14" /><path class="outer" d="M22 5.500a15 15 0 0 1 0 21" /></svg>
      <h1>Push1st console</h1>
      <label class="field wide">
        <span>Password</span>
        <input
          ref=${field}
          type="password"
          name="password"
          autocomplete="current-password"
          required
          aria-describedby="signin-note"
          aria-invalid=${Boolean(error)}
        />
      </label>
      <button type="submit" class="primary" disabled=${busy || wait > 0}>${busy ? "Signing in …" : "Sign in"}</button>
      <div id="signin-note" class="signin-note" role="status">
        ${error && html`<p class="error"><${Text} of=${error} />${wait > 0 && ` Try again in ${count(wait, "second")}.`}</p>`}
        ${hasEnded && html`<p>Your session has ended.</p>`}
        <p>Enter the password that the configuration of the server at ${location.host} sets with <code>console.password</code>. A demo has none there: it printed its password in the terminal where it started.</p>
      </div>
    </form>
  </main>`;
}
