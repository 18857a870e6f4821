/** Counts, shares, durations as text. Separators as in money: `1,234.5`. */

const WHOLE = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const ONE_PLACE = new Intl.NumberFormat("en-US", { maximumFractionDigits: 1 });
const SHORT = new Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: 1 });
const SHORT_FINE = new Intl.NumberFormat("en-US", {
  notation: "compact",
  minimumFractionDigits: 2,
  maximumFractionDigits: 2,
});

/** Every digit: `1,234,567`. */
export function countText(count: number): string {
  return Number.isInteger(count) ? WHOLE.format(count) : count.toLocaleString("en-US", { maximumFractionDigits: 6 });
}

/** A headline: all digits up to 99,999, then `1.23M`. */
export function shortCount(count: number): string {
  return Math.abs(count) < 100_000 ? countText(count) : SHORT_FINE.format(count);
}

/** A label of an axis. */
export function axisNumber(value: number): string {
  if (value === 0) return "0";
  return Math.abs(value) >= 1000 ? SHORT.format(value) : String(Number(value.toPrecision(3)));
}

/** Milliseconds: `840 ms`, `2.6 s`; a dash without any. */
export function millisText(ms: number | null | undefined): string {
  if (ms === null || ms === undefined) return "–";
  if (ms >= 10_000) return `${ONE_PLACE.format(ms / 1000)} s`;
  if (ms >= 1000) return `${(ms / 1000).toFixed(2)} s`;
  return `${ms < 10 ? ONE_PLACE.format(ms) : WHOLE.format(ms)} ms`;
}

/** `part` of `whole` in percent; a dash when there is no whole. */
export function shareText(part: number | bigint, whole: number | bigint): string {
  const share = ratio(part, whole);
  return share === null ? "–" : `${percent(share)} %`;
}

/** The change from `before` to `now`: `+12 %`, `−3.1 %`, `new`, or null when both are nothing. */
export function changeText(now: number | bigint, before: number | bigint): string | null {
  if (Number(before) === 0) return Number(now) === 0 ? null : "new";
  const change = (ratio(now, before) ?? 1) - 1;
  const sign = change > 0 ? "+" : change < 0 ? "−" : "±";
  return `${sign}${percent(Math.abs(change))} %`;
}

/** A share for drawing and for percents, from exact amounts; null when *whole* is 0. */
export function ratio(part: number | bigint, whole: number | bigint): number | null {
  if (typeof part === "bigint" && typeof whole === "bigint") {
    return whole === 0n ? null : Number((part * 1_000_000n) / whole) / 1_000_000;
  }
  return Number(whole) === 0 ? null : Number(part) / Number(whole);
}

function percent(share: number): string {
  const value = share * 100;
  if (value !== 0 && value < 0.1) return "<0.1";
  return value >= 10 ? WHOLE.format(value) : ONE_PLACE.format(value);
}
