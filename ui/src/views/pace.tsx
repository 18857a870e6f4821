/**
 * Today and the month so far, against yesterday and the month before, with where the month ends at the pace of the last
 * whole days. The method is a straight line, and is named so.
 */
import { curlOf, getUsage, queryName, usageParams, type Query } from "../api/usage";
import type { Row, Usage } from "../api/types";
import { Panel } from "../parts/panel";
import { moneyText } from "../format/money";
import { changeText, countText } from "../format/number";
import { dateText, localParts, midnight } from "../format/time";
import { useData } from "../state/data";
import { place, zone, type Filter } from "../state/place";
import { minute, type Span } from "../state/span";

const PACE_DAYS = 7;

export function Pace({ filters }: { filters: readonly Filter[] }) {
  const { y, m, d } = localParts(minute.value, zone.value);
  const day: Span = {
    from: dateText(y, m - 1, 1),
    to: dateText(y, m, d + 1),
    fromMs: midnight(y, m - 1, 1, zone.value),
    toMs: midnight(y, m, d + 1, zone.value),
    granularity: "day",
    zone: place.value.zone,
    open: true,
    words: "This month and the one before",
  };
  const query: Query = {
    span: day,
    filters,
    measures: ["cost_nanos", "provider_cost_nanos", "adjustments_nanos", "requests", "errors", "denied", "unpriced"],
    series: true,
    limit: 100,
    granularity: "day",
  };
  const loaded = useData(queryName(query), (signal) => getUsage(query, signal));
  return (
    <Panel
      title="Today and this month"
      loaded={loaded}
      curl={curlOf("usage", usageParams(query))}
      note={zone.value}
      class="brief"
    >
      {loaded.data && <Figures usage={loaded.data} y={y} m={m} d={d} />}
    </Panel>
  );
}

function Figures({ usage, y, m, d }: { usage: Usage; y: number; m: number; d: number }) {
  const rows = new Map(usage.rows.map((row) => [String(row.time).slice(0, 10), row]));
  const days = (month: number, first: number, last: number): Row[] => {
    const found: Row[] = [];
    for (let day = first; day <= last; day++) {
      const row = rows.get(dateText(y, month, day));
      if (row) found.push(row);
    }
    return found;
  };
  const today = sums(days(m, d, d));
  const yesterday = sums(days(m, d - 1, d - 1));
  const month = sums(days(m, 1, d));
  const before = sums(days(m - 1, 1, Math.min(d, lengthOf(y, m - 1))));
  const left = lengthOf(y, m) - d;
  const pace = Array.from({ length: PACE_DAYS }, (_, i) => sums(days(m, d - 1 - i, d - 1 - i)).cost);
  const mean = pace.reduce((sum, cost) => sum + cost, 0n) / BigInt(PACE_DAYS);
  const sorted = [...pace].sort((a, b) => (a < b ? -1 : a > b ? 1 : 0));
  // Today is whole at the pace at least; what it has by now stays.
  const untilMidnight = (rate: bigint): bigint => (rate > today.cost ? rate - today.cost : 0n);
  const end = (rate: bigint): string => moneyText(month.cost + untilMidnight(rate) + rate * BigInt(left));
  const bounds = `${end(sorted[0] ?? 0n)} to ${end(sorted[PACE_DAYS - 1] ?? 0n)}`;
  const known = pace.some((cost) => cost > 0n);
  return (
    <dl class="facts pace">
      <Money words="Revenue today so far" value={today.cost} against={`${moneyText(yesterday.cost)} all yesterday`} />
      <Money
        words="Revenue this month so far"
        value={month.cost}
        against={`${changeText(month.cost, before.cost) ?? "±0 %"} on the same days before, ${moneyText(before.cost)}`}
      />
      <div>
        <dt>At the month’s end</dt>
        <dd>
          <b>{known ? `≈ ${end(mean)}` : "–"}</b>{" "}
          <span class="note">
            {known
              ? `straight line of the last ${PACE_DAYS} whole days; ${bounds} at their lowest and highest`
              : "too little is known"}
          </span>
        </dd>
      </div>
      <Money
        words="Margin this month so far"
        value={month.cost - month.provider}
        against={`after ${moneyText(month.provider)} provider cost`}
      />
      <div>
        <dt>Requests today so far</dt>
        <dd>
          <b>{countText(today.requests)}</b>{" "}
          <span class="note">
            {countText(today.denied)} refused, {countText(Math.max(0, today.errors - today.denied))} failed
          </span>
        </dd>
      </div>
      {month.adjustments !== 0n && (
        <Money
          words="Adjustments this month so far"
          value={month.adjustments}
          against="given to customers; below 0 taken"
        />
      )}
      {month.unpriced > 0 && (
        <div>
          <dt>Without a price this month</dt>
          <dd>
            <b class="bad">{countText(month.unpriced)}</b>{" "}
            <span class="note">requests whose cost is not known yet: set a price</span>
          </dd>
        </div>
      )}
    </dl>
  );
}

function Money({ words, value, against }: { words: string; value: bigint; against: string }) {
  return (
    <div>
      <dt>{words}</dt>
      <dd>
        <b>{moneyText(value)}</b> <span class="note">{against}</span>
      </dd>
    </div>
  );
}

interface Sums {
  cost: bigint;
  provider: bigint;
  requests: number;
  errors: number;
  denied: number;
  adjustments: bigint;
  unpriced: number;
}

function sums(rows: Row[]): Sums {
  const money = (name: string): bigint => rows.reduce((sum, row) => sum + BigInt(row[name] ?? 0), 0n);
  const count = (name: string): number => rows.reduce((sum, row) => sum + Number(row[name] ?? 0), 0);
  return {
    cost: money("cost_nanos"),
    provider: money("provider_cost_nanos"),
    adjustments: money("adjustments_nanos"),
    requests: count("requests"),
    errors: count("errors"),
    denied: count("denied"),
    unpriced: count("unpriced"),
  };
}

function lengthOf(y: number, m: number): number {
  return new Date(Date.UTC(y, m, 0)).getUTCDate();
}
