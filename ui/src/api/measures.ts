/** The measures that the page shows: their names, units and texts. Amounts stay exact: money as `bigint` nanos. */
import { axisNumber, countText, millisText, shortCount } from "../format/number";
import { exactMoney, moneyText, nanosOf, pixels, placesOf } from "../format/money";
import type { Cell } from "./types";

export interface Measure {
  name: string;
  words: string;
  unit: "money" | "count" | "ms";
  /** Rows may be added up; percentiles may not. */
  additive: boolean;
}

function measure(name: string, words: string, unit: Measure["unit"] = "count", additive = true): Measure {
  return { name, words, unit, additive };
}

export const MEASURES: readonly Measure[] = [
  measure("cost_nanos", "Spend", "money"),
  measure("requests", "Requests"),
  measure("tokens", "Tokens"),
  measure("errors", "Errors"),
  measure("denied", "Refused"),
  measure("latency_ms_p95", "Latency p95", "ms", false),
  measure("latency_ms_p50", "Latency p50", "ms", false),
  measure("latency_ms_p99", "Latency p99", "ms", false),
  measure("latency_ms_avg", "Latency mean", "ms", false),
  measure("prompt_tokens", "Prompt tokens"),
  measure("cached_prompt_tokens", "Cached prompt tokens"),
  measure("completion_tokens", "Completion tokens"),
  measure("reasoning_tokens", "Reasoning tokens"),
  measure("credits", "Credits"),
  measure("failed", "Failed"),
  measure("unpriced", "Without a price"),
  measure("cache_hits", "Cache hits"),
  measure("bytes_out", "Bytes out"),
  measure("estimated_cost_nanos", "Estimated part of spend", "money"),
  measure("adjustments_nanos", "Adjustments", "money"),
  measure("provider_cost_nanos", "Provider cost", "money"),
];

export function measureOf(name: string): Measure {
  return MEASURES.find((each) => each.name === name) ?? { name, words: name, unit: "count", additive: true };
}

/** The amount in a form that sums exactly; null where the answer has none. */
export function amountOf(cell: Cell | undefined, unit: Measure["unit"]): bigint | number | null {
  if (cell === null || cell === undefined) return null;
  return unit === "money" ? nanosOf(cell) : Number(cell);
}

/** Every digit. */
export function exactText(cell: Cell | bigint | undefined, unit: Measure["unit"], places = 2): string {
  if (cell === null || cell === undefined) return "–";
  if (unit === "money") return exactMoney(BigInt(cell), places);
  return unit === "ms" ? `${countText(Number(Number(cell).toFixed(1)))} ms` : countText(Number(cell));
}

/** Decimal places for `exactText` of a whole column. */
export function columnPlaces(cells: Iterable<Cell | bigint | undefined>, unit: Measure["unit"]): number {
  if (unit !== "money") return 2;
  return placesOf(
    [...cells].filter((cell) => cell !== null && cell !== undefined).map((cell) => BigInt(cell as string)),
  );
}

/** A headline. */
export function shortText(cell: Cell | bigint | undefined, unit: Measure["unit"]): string {
  if (cell === null || cell === undefined) return "–";
  if (unit === "money") return moneyText(BigInt(cell));
  return unit === "ms" ? millisText(Number(cell)) : shortCount(Number(cell));
}

/** A coordinate. */
export function coordinate(cell: Cell | bigint | undefined, unit: Measure["unit"]): number {
  if (cell === null || cell === undefined) return 0;
  return unit === "money" ? pixels(BigInt(cell)) : Number(cell);
}

export function axisText(value: number, unit: Measure["unit"]): string {
  return unit === "ms" ? millisText(value) : axisNumber(value);
}
