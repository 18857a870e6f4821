/** The login: a key is pasted once, exchanged for a cookie that no script can read, and forgotten. */
import { useEffect, useState } from "preact/hooks";
import { forget, Problem, send } from "../api/client";
import type { Login } from "../api/types";
import { forgetData } from "../state/data";
import { loggedOut, login, loginNotice, rememberLogin, takeFragmentKey } from "../state/login";
import { Logo } from "../parts/logo";

export async function logIn(key: string): Promise<void> {
  forget();
  forgetData();
  const entered = await send<Login>("POST", "login", { key });
  rememberLogin(entered.expires_at);
  login.value = entered;
  loginNotice.value = "";
}

export async function logOut(): Promise<void> {
  try {
    await send("DELETE", "login");
  } catch (error) {
    // An ended login has nothing to end. Any other failure must be known: the cookie still works.
    if (!(error instanceof Problem && error.status === 401)) throw error;
  }
  forget();
  forgetData();
  loggedOut("Logged out.");
}

export function LoginForm() {
  const [key, setKey] = useState("");
  const [busy, setBusy] = useState(false);
  const [problem, setProblem] = useState<Problem | null>(null);
  const enter = async (text: string): Promise<void> => {
    setBusy(true);
    setProblem(null);
    try {
      await logIn(text);
    } catch (error) {
      setProblem(error instanceof Problem ? error : new Problem(0, String(error)));
      setBusy(false);
    }
    setKey("");
  };
  useEffect(() => {
    const given = takeFragmentKey();
    if (given) void enter(given);
  }, []);
  return (
    <main class="login">
      <form
        class="panel"
        onSubmit={(event) => {
          event.preventDefault();
          if (key.trim()) void enter(key.trim());
        }}
      >
        <h1>
          <Logo /> Tollkeeper
        </h1>
        <p>What is left, what was used, and why something was refused.</p>
        {loginNotice.value && !problem && (
          <p class="notice" role="status">
            {loginNotice.value}
          </p>
        )}
        <label>
          API key, management key or operator key
          <input
            type="password"
            autocomplete="off"
            spellcheck={false}
            autofocus
            value={key}
            aria-describedby="login-note"
            onInput={(event) => setKey(event.currentTarget.value)}
          />
        </label>
        {problem && (
          <p class="problem" role="alert">
            <strong>{loginWords(problem)}</strong>
          </p>
        )}
        <button type="submit" class="button primary" disabled={busy || key.trim() === ""}>
          {busy ? "Logging in …" : "Log in"}
        </button>
        <p id="login-note" class="note">
          The key is sent once, to this server only. The browser keeps a cookie that no script can read; the page keeps
          nothing.
        </p>
      </form>
    </main>
  );
}

function loginWords(problem: Problem): string {
  if (problem.status === 429) {
    const when = problem.retryAfterS ? `in ${problem.retryAfterS} s` : "later";
    return `Too many wrong keys from here. Try again ${when}.`;
  }
  if (problem.status === 401) return "This key is not known, or it has ended. Check that all of it was copied.";
  return problem.message;
}
