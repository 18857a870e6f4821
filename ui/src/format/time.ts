/** Instants in a time zone as text, and the local dates of a zone. The zone is an IANA name; `UTC` is the default. */

const formats = new Map<string, Intl.DateTimeFormat>();

/** A cached formatter: making one is slow. */
export function formatIn(zone: string, options: Intl.DateTimeFormatOptions): Intl.DateTimeFormat {
  const name = zone + JSON.stringify(options);
  let format = formats.get(name);
  if (!format) {
    format = new Intl.DateTimeFormat("en-GB", { timeZone: zone, ...options });
    formats.set(name, format);
  }
  return format;
}

export function isZone(zone: string): boolean {
  try {
    new Intl.DateTimeFormat("en-GB", { timeZone: zone });
    return true;
  } catch {
    return false;
  }
}

/** `28 Nov 2026, 14:05:09` in *zone*. */
export function instantText(ms: number, zone: string, seconds = false): string {
  return formatIn(zone, {
    day: "numeric",
    month: "short",
    year: "numeric",
    hour: "2-digit",
    minute: "2-digit",
    ...(seconds ? { second: "2-digit" } : {}),
    hourCycle: "h23",
  }).format(ms);
}

/** The start of a bucket, as precise as its size. */
export function bucketText(ms: number, granularity: string, zone: string): string {
  if (granularity === "month") return formatIn(zone, { month: "short", year: "numeric" }).format(ms);
  if (granularity === "week") return `week of ${formatIn(zone, { day: "numeric", month: "short" }).format(ms)}`;
  if (granularity === "day") return formatIn(zone, { weekday: "short", day: "numeric", month: "short" }).format(ms);
  return formatIn(zone, {
    day: "numeric",
    month: "short",
    hour: "2-digit",
    minute: "2-digit",
    hourCycle: "h23",
  }).format(ms);
}

/** `in 3 days`, `in 40 s`, `2 hours ago`. */
export function fromNow(ms: number, nowMs: number): string {
  const ahead = ms - nowMs;
  const size = Math.abs(ahead) / 1000;
  const [amount, unit] =
    size < 60
      ? [size, "s"]
      : size < 5400
        ? [size / 60, "min"]
        : size < 129_600
          ? [size / 3600, "hour"]
          : [size / 86_400, "day"];
  const whole = Math.max(1, Math.round(amount));
  const words = `${whole} ${unit}${whole > 1 && unit !== "s" && unit !== "min" ? "s" : ""}`;
  return ahead >= 0 ? `in ${words}` : `${words} ago`;
}

/** Year, month (1–12), day, hour, minute of an instant in *zone*. */
export function localParts(ms: number, zone: string): { y: number; m: number; d: number; h: number; min: number } {
  const found: Record<string, number> = {};
  const format = formatIn(zone, {
    year: "numeric",
    month: "numeric",
    day: "numeric",
    hour: "numeric",
    minute: "numeric",
    hourCycle: "h23",
  });
  for (const part of format.formatToParts(ms)) found[part.type] = Number(part.value);
  return { y: found.year ?? 0, m: found.month ?? 1, d: found.day ?? 1, h: found.hour ?? 0, min: found.minute ?? 0 };
}

/** The first instant of a local date, daylight saving time included; months and days may overflow. */
export function midnight(y: number, m: number, d: number, zone: string): number {
  const wanted = Date.UTC(y, m - 1, d);
  let ms = wanted;
  for (let i = 0; i < 2; i++) {
    const at = localParts(ms, zone);
    ms += wanted - Date.UTC(at.y, at.m - 1, at.d, at.h, at.min);
  }
  // A day may begin after midnight: where the clock jumps over it, the search ends in the day before.
  const at = localParts(ms, zone);
  return ms + Math.max(0, wanted - Date.UTC(at.y, at.m - 1, at.d, at.h, at.min));
}

/** `2026-11-28` of a date that may overflow. */
export function dateText(y: number, m: number, d: number): string {
  return new Date(Date.UTC(y, m - 1, d)).toISOString().slice(0, 10);
}
