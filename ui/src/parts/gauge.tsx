/** What is left of a limit, budget or balance: a bar, the rest in large, used and allowed, and when it resets. */
import { exactMoney, moneyText, nanosOf } from "../format/money";
import { countText, ratio } from "../format/number";
import { fromNow, instantText } from "../format/time";
import type { LimitStatus } from "../api/types";
import { zone } from "../state/place";
import { minute } from "../state/span";

export interface Gauge {
  name: string;
  /** What it is, e.g. `budget`, `rate limit`. */
  kind: string;
  unit: string;
  allowed: bigint | null;
  used: bigint | null;
  remaining: bigint | null;
  resetsAt: string | null;
  counts: string;
}

/** Amounts of quantities have decimals: they count in millionths here. */
export function gaugeOf(status: LimitStatus, kind: string): Gauge {
  const amount = (value: number | string | null): bigint | null =>
    status.unit === "nanos" ? nanosOf(value) : value === null ? null : millionths(String(value));
  const per = status.per ? `each ${status.per.join(", ")} apart` : "";
  return {
    name: status.name,
    kind,
    unit: status.unit,
    allowed: amount(status.allowed),
    used: amount(status.used),
    remaining: amount(status.remaining),
    resetsAt: status.resets_at,
    counts: [status.match ?? "", per].filter(Boolean).join("; "),
  };
}

export function GaugeBar({ gauge }: { gauge: Gauge }) {
  const { allowed, used, remaining } = gauge;
  const share = allowed !== null && used !== null ? (ratio(used, allowed) ?? (used > 0n ? 1 : 0)) : 0;
  const level = share >= 1 ? "out" : share >= 0.9 ? "low" : share >= 0.75 ? "warm" : "fine";
  const reset = gauge.resetsAt === null ? null : Date.parse(gauge.resetsAt);
  const filled = Math.min(1, Math.max(share > 0 ? 0.006 : 0, share));
  const beyond = used !== null && allowed !== null ? used - allowed : 0n;
  const words = remaining === null ? "counted apart" : `${amountText(remaining, gauge.unit)} left`;
  return (
    <li class={`gauge ${level}`}>
      <div class="gauge-top">
        <span class="gauge-name">{gauge.name}</span>
        <span class="note">{gauge.kind}</span>
      </div>
      <div class="gauge-rest" title={remaining === null ? undefined : exactAmount(remaining, gauge.unit)}>
        <b>{remaining === null ? "–" : amountText(remaining < 0n ? 0n : remaining, gauge.unit)}</b>{" "}
        {remaining === null ? words : `${unitWords(gauge.unit)}left`}
      </div>
      <svg
        class="bar"
        role="img"
        aria-label={`${gauge.name}: ${Math.round(share * 100)} % used, ${words}`}
        width="100%"
        height="8"
      >
        <rect class="track" width="100%" height="8" rx="4" />
        <rect class="fill" width={`${filled * 100}%`} height="8" rx="4" />
      </svg>
      <div class="gauge-foot">
        <span>
          {used === null ? "" : amountText(used, gauge.unit)} of{" "}
          {allowed === null ? "no bound" : amountText(allowed, gauge.unit)}
          {level === "out" && (
            <strong> · {beyond > 0n ? `${amountText(beyond, gauge.unit)} beyond` : "used up"}</strong>
          )}
        </span>
        {reset !== null && reset - minute.value > 120_000 && (
          <time dateTime={gauge.resetsAt ?? ""} title={instantText(reset, zone.value, true)}>
            resets {fromNow(reset, minute.value)}
          </time>
        )}
      </div>
      {gauge.counts && <div class="note">{gauge.counts}</div>}
    </li>
  );
}

/** How much of it is used, for the order: the most pressing first. */
export function pressure(gauge: Gauge): number {
  return gauge.allowed === null || gauge.used === null ? -1 : (ratio(gauge.used, gauge.allowed) ?? 2);
}

export function exactAmount(value: bigint, unit: string): string {
  return unit === "nanos" ? exactMoney(value) : decimals(value);
}

function amountText(value: bigint, unit: string): string {
  return unit === "nanos" ? moneyText(value) : decimals(value);
}

function unitWords(unit: string): string {
  return unit === "nanos" ? "" : `${unit.replace("quantity.", "")} `;
}

function millionths(text: string): bigint {
  const [whole = "0", part = ""] = text.replace("-", "").split(".");
  const size = BigInt(whole) * 1_000_000n + BigInt(part.padEnd(6, "0").slice(0, 6));
  return text.startsWith("-") ? -size : size;
}

function decimals(value: bigint): string {
  const whole = value / 1_000_000n;
  const part = (value < 0n ? -value : value) % 1_000_000n;
  const shown = countText(Number(whole));
  return part === 0n ? shown : `${shown}.${part.toString().padStart(6, "0").replace(/0+$/, "")}`;
}
