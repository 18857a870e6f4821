/**
 * Calls of the public API by relative URLs. A `GET` that was answered before is asked for again with its ETag; a 304
 * gives the very same object, so nothing is drawn again. Methods that change something carry the CSRF token.
 */
import { login, loggedOut } from "../state/login";

export const API = "tk/v1/";

/** The pairs of a query string; a value of undefined or "" with no meaning is left out by the caller. */
export type Params = readonly (readonly [string, string])[];

/** A refusal or failure, in words that can be shown. `status` is 0 when no answer came. */
export class Problem extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly code = "",
    readonly retryAfterS: number | null = null,
  ) {
    super(message);
  }
}

const answered = new Map<string, { etag: string; body: unknown }>();
const ANSWERS_MAX = 60;

export function urlOf(path: string, params: Params = []): string {
  const query = new URLSearchParams(params.map(([name, value]): [string, string] => [name, value])).toString();
  return query ? `${path}?${query}` : path;
}

/** The answer's JSON. Throws Problem; an aborted call throws the browser's AbortError. */
export async function getJson<T>(path: string, params: Params = [], signal?: AbortSignal): Promise<T> {
  const url = urlOf(API + path, params);
  const known = answered.get(url);
  const response = await call(url, { signal, headers: known ? { "If-None-Match": known.etag } : {} });
  if (response.status === 304 && known) return known.body as T;
  const body = (await bodyOf(response)) as T;
  const etag = response.headers.get("ETag");
  answered.delete(url);
  if (etag) answered.set(url, { etag, body });
  if (answered.size > ANSWERS_MAX) answered.delete(answered.keys().next().value ?? "");
  return body;
}

/** Text, as of `metrics`. */
export async function getText(path: string, signal?: AbortSignal): Promise<string> {
  const response = await call(path, { signal });
  if (!response.ok) throw await problemOf(response);
  return response.text();
}

/** A call that changes something. */
export async function send<T>(
  method: "POST" | "PUT" | "DELETE",
  path: string,
  body?: unknown,
  params: Params = [],
): Promise<T> {
  const csrf = login.value?.csrf;
  const response = await call(urlOf(API + path, params), {
    method,
    headers: {
      ...(body === undefined ? {} : { "Content-Type": "application/json" }),
      ...(csrf ? { "X-CSRF-Token": csrf } : {}),
    },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  return (await bodyOf(response)) as T;
}

/** The answers of an earlier login are not shown to the next one. */
export function forget(): void {
  answered.clear();
}

async function call(url: string, init: RequestInit): Promise<Response> {
  try {
    return await fetch(url, { credentials: "same-origin", cache: "no-store", ...init });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new Problem(0, navigator.onLine ? "The server does not answer." : "This device is offline.", "unreachable");
  }
}

async function bodyOf(response: Response): Promise<unknown> {
  if (!response.ok) throw await problemOf(response);
  return response.status === 204 ? null : response.json();
}

async function problemOf(response: Response): Promise<Problem> {
  let detail = "";
  let code = "";
  try {
    const body = (await response.json()) as { detail?: string; title?: string; code?: string };
    detail = body.detail ?? body.title ?? "";
    code = body.code ?? "";
  } catch {
    // No problem document, e.g. of a proxy: the status says what is known.
  }
  if (response.status === 401 && login.value) loggedOut("The login has ended. Log in again.");
  const after = Number(response.headers.get("Retry-After"));
  return new Problem(
    response.status,
    detail || `The server answered ${response.status}.`,
    code,
    after > 0 ? after : null,
  );
}
