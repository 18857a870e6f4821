/** The start: preferences, history, refresh; then the login form or the page. */
import { render } from "preact";
import { useEffect } from "preact/hooks";
import { getJson, Problem } from "./api/client";
import type { Login } from "./api/types";
import { App } from "./app";
import { ProblemNote, Skeleton } from "./parts/panel";
import { login, loggedOut, mayBeLoggedIn } from "./state/login";
import { watchHistory } from "./state/place";
import { watchPreferences } from "./state/preferences";
import { watchRefresh } from "./state/refresh";
import { signal } from "@preact/signals";
import { LoginForm } from "./views/login";
import "./page.css";

const failure = signal<Problem | null>(null);

async function whoIsIt(): Promise<void> {
  failure.value = null;
  // A link's key counts before an earlier login: the form takes it.
  if (location.hash.startsWith("#t=") || !mayBeLoggedIn()) {
    login.value = null;
    return;
  }
  try {
    login.value = await getJson<Login>("login");
  } catch (error) {
    if (error instanceof Problem && error.status === 401) loggedOut("");
    else failure.value = error instanceof Problem ? error : new Problem(0, String(error));
  }
}

function Page() {
  useEffect(() => void whoIsIt(), []);
  if (login.value) return <App key={`${login.value.role} ${login.value.account} ${login.value.key}`} />;
  if (login.value === null) return <LoginForm />;
  return (
    <main class="login">
      <h1 class="sr">Tollkeeper</h1>
      {failure.value ? <ProblemNote problem={failure.value} reload={() => void whoIsIt()} /> : <Skeleton />}
    </main>
  );
}

const root = document.getElementById("page");
if (root) {
  watchPreferences();
  watchHistory();
  watchRefresh();
  render(<Page />, root);
}
