/** Single requests: the list, and the values of one. A server of before the list answers 404 or 405. */
import { noteTags } from "../state/tags";
import type { Filter } from "../state/place";
import type { Span } from "../state/span";
import { getJson, Problem, type Params } from "./client";
import type { EventPage, MeterEvent } from "./types";

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

export async function getEvents(params: Params, signal?: AbortSignal): Promise<EventPage> {
  try {
    const page = await getJson<EventPage>("events", params, signal);
    noteTags(page.events);
    return page;
  } catch (error) {
    if (error instanceof Problem && (error.status === 405 || error.status === 404)) {
      throw new Problem(error.status, "This server does not list single requests yet.", error.code);
    }
    throw error;
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
