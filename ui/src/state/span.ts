/**
 * The range of the page as half-open spans. Whole days are sent as dates with `time_zone`, so that the server finds the
 * midnights; shorter ranges as instants, to whole minutes, so that a poll repeats the same call.
 */
import { computed, signal } from "@preact/signals";
import { dateText, formatIn, instantText, localParts, midnight } from "../format/time";
import { place, type Place } from "./place";

export type Granularity = "minute" | "hour" | "day" | "week" | "month";

export interface Span {
  /** As the API takes them. */
  from: string;
  to: string;
  fromMs: number;
  toMs: number;
  granularity: Granularity;
  zone: string;
  /** Events may still come into it. */
  open: boolean;
  words: string;
}

export const RANGES: readonly (readonly [range: string, words: string])[] = [
  ["1h", "Last hour"],
  ["24h", "Last 24 hours"],
  ["today", "Today"],
  ["yesterday", "Yesterday"],
  ["7d", "Last 7 days"],
  ["30d", "Last 30 days"],
  ["90d", "Last 90 days"],
  ["month", "This month"],
  ["last-month", "Last month"],
  ["year", "This year"],
];

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;

/** The clock of the page, in whole minutes. */
export const minute = signal(Math.floor(Date.now() / MINUTE) * MINUTE);

export function tick(): void {
  const now = Math.floor(Date.now() / MINUTE) * MINUTE;
  if (now !== minute.value) minute.value = now;
}

const spanName = computed(() => {
  const { range, from, to, zone, options } = place.value;
  return JSON.stringify([range, from, to, zone, options.granularity ?? ""]);
});

/** The span of the place; the same object until it changes. */
export const span = computed<Span>(() => {
  void spanName.value;
  return spanOf(place.peek(), minute.value);
});

export function spanOf(place: Place, nowMs: number): Span {
  const made = place.range
    ? ofRange(place.range, place.zone, nowMs)
    : ofInstants(place.from, place.to, place.zone, nowMs);
  const chosen = place.options.granularity as Granularity | undefined;
  return chosen && bucketCount(made, chosen) <= BUCKETS_MAX ? { ...made, granularity: chosen } : made;
}

/** The same length (or the same calendar month) before; an open span is compared up to the same hour. */
export function spanBefore(now: Span, range: string, nowMs: number): Span {
  const { zone } = now;
  let fromMs: number;
  if (range === "month" || range === "last-month") {
    const { y, m } = localParts(now.fromMs, zone);
    fromMs = midnight(y, m - 1, 1, zone);
  } else if (range === "year") {
    fromMs = midnight(localParts(now.fromMs, zone).y - 1, 1, 1, zone);
  } else if (isMidnight(now.fromMs, zone) && isMidnight(now.toMs, zone)) {
    const start = localParts(now.fromMs, zone);
    fromMs = midnight(start.y, start.m, start.d - Math.round((now.toMs - now.fromMs) / DAY), zone);
  } else {
    fromMs = now.fromMs - (now.toMs - now.fromMs);
  }
  const step = now.granularity === "minute" ? MINUTE : HOUR;
  const passed = now.open ? Math.floor((nowMs - now.fromMs) / step) * step : now.toMs - now.fromMs;
  const toMs = Math.min(fromMs + Math.max(passed, step), now.fromMs);
  return {
    ...now,
    from: iso(fromMs),
    to: iso(toMs),
    fromMs,
    toMs,
    open: false,
    words: `${shortDate(fromMs, zone)} – ${instantText(toMs, zone)}`,
  };
}

/** The starts of all buckets, also of those without events. */
export function bucketStarts(span: Span): number[] {
  const { fromMs, toMs, granularity, zone } = span;
  const starts: number[] = [];
  if (granularity === "minute" || granularity === "hour") {
    const step = granularity === "minute" ? MINUTE : HOUR;
    const ahead = localParts(fromMs, zone).min * MINUTE;
    const first =
      granularity === "hour" ? Math.floor(fromMs / MINUTE) * MINUTE - ahead : Math.floor(fromMs / step) * step;
    for (let at = first; at < toMs && starts.length <= BUCKETS_MAX; at += step) starts.push(at);
    return starts;
  }
  const { y, m, d } = localParts(fromMs, zone);
  const weekday = (new Date(Date.UTC(y, m - 1, d)).getUTCDay() + 6) % 7;
  for (let i = 0; starts.length <= BUCKETS_MAX; i++) {
    const at =
      granularity === "month"
        ? midnight(y, m + i, 1, zone)
        : granularity === "week"
          ? midnight(y, m, d - weekday + 7 * i, zone)
          : midnight(y, m, d + i, zone);
    if (at >= toMs) break;
    starts.push(at);
  }
  return starts;
}

export const BUCKETS_MAX = 5000;
const WIDTH: Record<Granularity, number> = { minute: MINUTE, hour: HOUR, day: DAY, week: 7 * DAY, month: 30 * DAY };

export function bucketCount(span: Span, granularity: Granularity): number {
  return (span.toMs - span.fromMs) / WIDTH[granularity];
}

function ofRange(range: string, zone: string, nowMs: number): Span {
  const { y, m, d } = localParts(nowMs, zone);
  const days = (first: number, end: number, words: string): Span =>
    ofDates([y, m, d + first], [y, m, d + end], zone, nowMs, words);
  const words = RANGES.find(([name]) => name === range)?.[1] ?? "Last 30 days";
  switch (range) {
    case "1h":
      return ofMs(nowMs + MINUTE - HOUR, nowMs + MINUTE, zone, nowMs, words);
    case "24h": {
      const end = Math.floor(nowMs / HOUR) * HOUR + HOUR;
      return ofMs(end - DAY, end, zone, nowMs, words);
    }
    case "today":
      return days(0, 1, words);
    case "yesterday":
      return days(-1, 0, words);
    case "7d":
      return days(-6, 1, words);
    case "90d":
      return days(-89, 1, words);
    case "month":
      return ofDates([y, m, 1], [y, m + 1, 1], zone, nowMs, words);
    case "last-month":
      return ofDates([y, m - 1, 1], [y, m, 1], zone, nowMs, words);
    case "year":
      return ofDates([y, 1, 1], [y + 1, 1, 1], zone, nowMs, words);
    default:
      return days(-29, 1, "Last 30 days");
  }
}

type DateParts = readonly [y: number, m: number, d: number];

function ofDates(first: DateParts, end: DateParts, zone: string, nowMs: number, words: string): Span {
  return {
    ...ofMs(midnight(...first, zone), midnight(...end, zone), zone, nowMs, words),
    from: dateText(...first),
    to: dateText(...end),
  };
}

function ofInstants(from: string, to: string, zone: string, nowMs: number): Span {
  const [fromMs, toMs] = [startOf(from, zone), startOf(to, zone)];
  if (Number.isNaN(fromMs) || Number.isNaN(toMs) || fromMs >= toMs) return ofRange("30d", zone, nowMs);
  const whole = isMidnight(fromMs, zone) && isMidnight(toMs, zone);
  const words = whole
    ? [...new Set([shortDate(fromMs, zone), shortDate(toMs - HOUR, zone)])].join(" – ")
    : `${instantText(fromMs, zone)} – ${instantText(toMs, zone)}`;
  return { ...ofMs(fromMs, toMs, zone, nowMs, words), from, to };
}

/** The instant of a date or an RFC 3339 date-time of the URL. */
function startOf(text: string, zone: string): number {
  const date = /^(\d{4})-(\d\d)-(\d\d)$/.exec(text);
  return date ? midnight(Number(date[1]), Number(date[2]), Number(date[3]), zone) : Date.parse(text);
}

function ofMs(fromMs: number, toMs: number, zone: string, nowMs: number, words: string): Span {
  const length = toMs - fromMs;
  const granularity =
    length <= 3 * HOUR ? "minute" : length <= 3.1 * DAY ? "hour" : length <= 125 * DAY ? "day" : "week";
  return { from: iso(fromMs), to: iso(toMs), fromMs, toMs, granularity, zone, open: nowMs < toMs, words };
}

function isMidnight(ms: number, zone: string): boolean {
  const { y, m, d } = localParts(ms, zone);
  return midnight(y, m, d, zone) === ms;
}

function shortDate(ms: number, zone: string): string {
  return formatIn(zone, { day: "numeric", month: "short", year: "numeric" }).format(ms);
}

export function iso(ms: number): string {
  return new Date(ms).toISOString().replace(".000Z", "Z");
}
