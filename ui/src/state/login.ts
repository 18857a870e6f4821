/** Who is logged in. The key itself is never kept: the server's cookie stands for it. */
import { signal } from "@preact/signals";
import type { Login } from "../api/types";

/** Undefined until the server was asked; null: nobody. */
export const login = signal<Login | null | undefined>(undefined);
/** Why the form is shown, e.g. an ended login. */
export const loginNotice = signal("");

const FLAG = "tollkeeper.login";

/** Remember until when a login may last, so that a browser without one is not asked about it. No secret is kept. */
export function rememberLogin(expiresAt: string | null): void {
  try {
    if (expiresAt === null) localStorage.removeItem(FLAG);
    else localStorage.setItem(FLAG, expiresAt);
  } catch {
    // Storage is barred: the server is asked at each start.
  }
}

export function mayBeLoggedIn(): boolean {
  try {
    const until = localStorage.getItem(FLAG);
    return until !== null && Date.parse(until) > Date.now();
  } catch {
    return true;
  }
}

export function loggedOut(why: string): void {
  rememberLogin(null);
  login.value = null;
  loginNotice.value = why;
}

/**
 * The key of a link's fragment (`#t=…`), removed from the address and the history at once. A fragment is never sent,
 * so no server logs it.
 */
export function takeFragmentKey(): string | null {
  const found = /^#t=(.+)$/.exec(location.hash);
  if (location.hash) history.replaceState(null, "", location.pathname + location.search);
  return found?.[1] ? decodeURIComponent(found[1]) : null;
}
