/** Single requests: the list, and the values of one. */
import { noteTags } from "../state/tags";
import type { Filter } from "../state/place";
import type { Span } from "../state/span";
import { getJson, type Params } from "./client";
import { inTurn } from "./turns";
import type { EventPage, MeterEvent } from "./types";

const PAGES_MAX = 5;

export function eventParams(
  span: Span,
  filters: readonly Filter[],
  limit: number,
  cursor: string | null = null,
): Params {
  return [
    ["from", span.from],
    ["to", span.to],
    ...(span.zone === "UTC" ? [] : [["time_zone", span.zone] as const]),
    ["limit", String(limit)],
    ...(cursor ? [["cursor", cursor] as const] : []),
    ...filters.map(([name, value]) => [name, value.replaceAll(",", "\\,")] as const),
  ];
}

/**
 * The next events of the list. A page of the server may be short, even empty, and have a cursor: its time was up. So it
 * is asked on until as many are found as *limit* of *params* says, or it was asked often enough.
 */
export async function getEvents(params: Params, signal?: AbortSignal): Promise<EventPage> {
  const limit = Number(params.find(([name]) => name === "limit")?.[1]);
  const events: MeterEvent[] = [];
  let asked = params;
  for (let pages = 1; ; pages += 1) {
    const page = await inTurn(signal, () => getJson<EventPage>("events", asked, signal));
    events.push(...page.events);
    const left = limit - events.length;
    if (left <= 0 || page.next_cursor === null || pages >= PAGES_MAX) {
      noteTags(events);
      return { ...page, events };
    }
    asked = [
      ...params.filter(([name]) => name !== "limit" && name !== "cursor"),
      ["limit", String(left)],
      ["cursor", page.next_cursor],
    ];
  }
}

/** Classes of tokens and their counts, without zeros. */
export function tokensOf(event: MeterEvent): [name: string, count: number][] {
  const tokens = event.tokens;
  if (typeof tokens !== "object" || tokens === null) return [];
  return Object.entries(tokens as Record<string, number>).filter(([, count]) => count > 0);
}

export function textOf(event: MeterEvent, field: string): string {
  const value = event[field];
  return value === null || value === undefined ? "" : String(value);
}

export function keyOf(event: MeterEvent): string {
  return textOf(event, "key_id") || textOf(event, "key");
}
