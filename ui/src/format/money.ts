/**
 * Money: whole nanos as `bigint`, read from the decimal text of answers. No float is ever money; `pixels` is for
 * drawing alone.
 */
const NANOS = 1_000_000_000n;

/** The nanos of an answer's text (or of a whole number); null stays null. */
export function nanosOf(text: string | number | null | undefined): bigint | null {
  return text === null || text === undefined || text === "" ? null : BigInt(text);
}

/** The exact amount, with at least two decimal places: `1,234.5678`. */
export function exactMoney(nanos: bigint, placesMin = 2): string {
  const text = split(nanos, 9);
  return text.slice(0, text.length - Math.min(9 - placesMin, /0*$/.exec(text)?.[0].length ?? 0));
}

/** Nanos with parts of a nano, as decimal text, as money: lines of a price are rounded only in their sum. */
export function partialMoney(text: string): string {
  const [whole = "0", part = ""] = text.split(".");
  const exact = split(BigInt(whole), 9) + part;
  return exact.replace(/(\.\d\d\d*?)0+$/, "$1");
}

/** The decimal places that the exact amounts of a column need, so that the points are below each other. */
export function placesOf(column: Iterable<bigint>): number {
  let places = 2;
  for (const nanos of column) {
    const zeros = /0*$/.exec((nanos < 0n ? -nanos : nanos).toString().padStart(10, "0").slice(-9))?.[0].length ?? 0;
    places = Math.max(places, 9 - zeros);
  }
  return places;
}

/** The amount as people read it: two decimal places, more below 1 so that small amounts are not 0.00. */
export function moneyText(nanos: bigint): string {
  const size = nanos < 0n ? -nanos : nanos;
  if (size >= NANOS || size === 0n) return split(nanos, 2);
  if (size >= 10_000_000n) return split(nanos, 4);
  if (size >= 100_000n) return split(nanos, 6);
  return exactMoney(nanos);
}

/** A number for a coordinate. Never shown, never summed. */
export function pixels(nanos: bigint): number {
  return Number(nanos) / 1e9;
}

/** The amount rounded half up to *places*, with thousands separators. */
function split(nanos: bigint, places: number): string {
  const size = nanos < 0n ? -nanos : nanos;
  const unit = 10n ** BigInt(9 - places);
  const rounded = (size + unit / 2n) / unit;
  const scale = 10n ** BigInt(places);
  const whole = (rounded / scale).toString().replace(/\B(?=(\d{3})+$)/g, ",");
  const sign = nanos < 0n && rounded > 0n ? "−" : "";
  return `${sign}${whole}.${(rounded % scale).toString().padStart(places, "0")}`;
}
