/** Entries of the set-up: pages of a kind, all of them up to a bound, and what may be done to keys. */
import { getJson, send, type Params } from "./client";
import type { Key, Page } from "./types";

const PAGE_SIZE = 1000;
export const ENTRIES_MAX = 10_000;

/** All entries of a kind, page after page; `more` says that the bound was reached. */
export async function getAll<T>(
  kind: string,
  params: Params = [],
  signal?: AbortSignal,
): Promise<{ items: T[]; more: boolean }> {
  const items: T[] = [];
  let after: string | null = null;
  do {
    const asked: Params = [...params, ["limit", String(PAGE_SIZE)], ...(after ? [["after", after] as const] : [])];
    const page: Page<T> = await getJson<Page<T>>(kind, asked, signal);
    items.push(...page.items);
    after = page.next;
  } while (after && items.length < ENTRIES_MAX);
  return { items, more: after !== null };
}

export interface IssuedKey {
  entry: Key;
  secret: string | null;
}

export function createKey(fields: Record<string, unknown>): Promise<IssuedKey> {
  return send<IssuedKey>("POST", "keys", fields);
}

export function rotateKey(key: Key, overlapS: number, params: Params): Promise<IssuedKey> {
  return send<IssuedKey>("POST", `keys/${encodeURIComponent(key.id)}/rotate`, { overlap_s: overlapS }, params);
}

export function setKeyState(key: Key, state: string, params: Params): Promise<unknown> {
  return send("POST", `keys/${encodeURIComponent(key.id)}/state`, { state }, params);
}
