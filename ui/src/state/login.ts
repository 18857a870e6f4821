/** Who is logged in. The key itself is never kept: the server's cookie stands for it. */
import { signal } from "@preact/signals";
import type { Login } from "../api/types";

/** Undefined until the server was asked; null: nobody. */
export const login = signal<Login | null | undefined>(undefined);
/** Why the form is shown, e.g. an ended login. */
export const loginNotice = signal("");

export function loggedOut(why: string): void {
  login.value = null;
  loginNotice.value = why;
}

/**
 * The key of a link's fragment (`#t=…`), removed from the address and the history at once. A fragment is never sent, so no
 * server logs it.
 */
export function takeFragmentKey(): string | null {
  const found = /^#t=(.+)$/.exec(location.hash);
  if (location.hash) history.replaceState(null, "", location.pathname + location.search);
  return found?.[1] ? decodeURIComponent(found[1]) : null;
}
