/** The price of a request, line by line, from its counts and the rates in force. Exact: rounded once, half up, at the end. */
import { exactMoney } from "../format/money";
import { countText } from "../format/number";
import type { MeterEvent } from "../api/types";
import { tokensOf } from "../api/events";

export interface ShownPrice {
  model: string | null;
  why: string;
  version?: string;
  request_nanos?: string;
  tiers?: { prompt_tokens_over: number; rates: Record<string, string> }[];
}

export interface PriceLine {
  of: string;
  count: string;
  rate: string;
  amount: string;
}

const MILLION = 1_000_000n;
/** A quantity has up to six decimal places. */
const QUANTITY = 1_000_000n;

/** The lines and their sum; null when the price has no rate of something that was counted. */
export function priceLines(event: MeterEvent, price: ShownPrice): { lines: PriceLine[]; sum: bigint } | null {
  const tokens = tokensOf(event);
  const prompt = tokens.filter(([name]) => name.includes("prompt") || name.startsWith("cache_write")).reduce((sum, [, count]) => sum + count, 0);
  const tier = [...(price.tiers ?? [])].reverse().find((each) => each.prompt_tokens_over === 0 || prompt > each.prompt_tokens_over);
  if (!tier) return null;
  const lines: PriceLine[] = [];
  let scaled = 0n; // In nanos × MILLION × QUANTITY.
  for (const [name, count] of tokens) {
    const rate = tier.rates[`${name}_tokens`];
    if (rate === undefined) return null;
    const amount = BigInt(count) * BigInt(rate);
    scaled += amount * QUANTITY;
    lines.push({ of: `${name.replaceAll("_", " ")} tokens`, count: countText(count), rate: exactMoney(BigInt(rate)), amount: exactMoney(rounded(amount, MILLION)) });
  }
  for (const [name, value] of Object.entries((event.quantities as Record<string, string | number> | undefined) ?? {})) {
    const rate = tier.rates[name];
    if (rate === undefined) continue; // It is counted and has no price.
    const [whole = "0", part = ""] = String(value).split(".");
    const amount = BigInt(whole + part.padEnd(6, "0").slice(0, 6)) * BigInt(rate);
    scaled += amount;
    lines.push({ of: name, count: String(value), rate: exactMoney(BigInt(rate)), amount: exactMoney(rounded(amount, MILLION * QUANTITY)) });
  }
  const request = BigInt(price.request_nanos ?? "0");
  if (request > 0n) lines.push({ of: "the request", count: "1", rate: "–", amount: exactMoney(request) });
  return { lines, sum: request + rounded(scaled, MILLION * QUANTITY) };
}

function rounded(amount: bigint, by: bigint): bigint {
  return (amount + by / 2n) / by;
}
