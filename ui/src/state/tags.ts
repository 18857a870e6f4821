/** The names of tags that this caller's events have: from the filters and from events that were shown. */
import { computed, signal } from "@preact/signals";
import type { MeterEvent } from "../api/types";
import { place } from "./place";

const TAGS_MAX = 4;
const seen = signal<readonly string[]>([]);

export const tagNames = computed(() => {
  const filtered = place.value.filters.map(([name]) => name).filter((name) => name.startsWith("tag."));
  return [...new Set([...filtered, ...seen.value])].slice(0, TAGS_MAX);
});

export function useTagNames(): readonly string[] {
  return tagNames.value;
}

export function noteTags(events: readonly MeterEvent[]): void {
  const found = new Set(seen.peek());
  const before = found.size;
  for (const event of events)
    for (const name of Object.keys((event.tags as object | null) ?? {})) found.add(`tag.${name}`);
  if (found.size > before) seen.value = [...found];
}
