/** Explore: a measure by a group and a subgroup over time; top N and the exact rest; stacked, lines or a table. */
import { useMemo } from "preact/hooks";
import { MEASURES, measureOf } from "../api/measures";
import { csvHref, curlOf, getUsage, queryName, usageParams, type Query } from "../api/usage";
import type { Usage } from "../api/types";
import { Chart } from "../parts/chart";
import { Panel } from "../parts/panel";
import { inSentence } from "../parts/headline";
import { dimensionWords } from "../parts/words";
import { useData } from "../state/data";
import { login } from "../state/login";
import { DIMENSIONS, place, setOption, type Filter } from "../state/place";
import { bucketCount, BUCKETS_MAX, minute, span as pageSpan, spanBefore, type Granularity } from "../state/span";
import { useTagNames } from "../state/tags";
import { ExploreTable } from "./explore-table";
import { exploreSeries, topGroups, totalsOf } from "./explore-series";

const GRANULARITIES: Granularity[] = ["minute", "hour", "day", "week", "month"];
const SHAPES = [
  ["stacked", "Stacked"],
  ["lines", "Lines"],
  ["table", "Table"],
] as const;

export function Explore() {
  const { options, filters, compare } = place.value;
  const span = pageSpan.value;
  const operator = login.value?.role === "operator";
  const measure = measureOf(options.measure ?? "cost_nanos");
  const group = options.group ?? "model";
  const sub = options.sub === group ? "" : (options.sub ?? "");
  const top = Math.min(10, Math.max(1, Number(options.top ?? 6) || 6));
  const groupBy = [group, sub].filter(Boolean);
  const shape = measure.additive ? (options.shape ?? "stacked") : options.shape === "table" ? "table" : "lines";
  const cumulative = options.sum === "1" && measure.additive;

  const ranked: Query = { span, filters, measures: [measure.name], groupBy, sort: `-${measure.name}`, limit: top };
  const groups = useData(queryName(ranked), (signal) => getUsage(ranked, signal));
  const totals: Query = { span, filters, measures: [measure.name], series: true, limit: 50_000 };
  const all = useData(queryName(totals), (signal) => getUsage(totals, signal));
  const named = groups.data ? topGroups(groups.data, groupBy) : null;
  const parts: Query | null = named && {
    span,
    measures: [measure.name],
    series: true,
    groupBy,
    limit: 50_000,
    filters: [
      ...withoutGroups(filters, groupBy),
      ...groupBy.flatMap((name, i) =>
        [...new Set(named.map((values) => values[i] ?? ""))].map((value): Filter => [name, value]),
      ),
    ],
  };
  const series = useData(parts && named && named.length > 0 ? queryName(parts) : null, (signal) =>
    getUsage(parts ?? totals, signal),
  );
  const earlier: Query = { ...totals, span: spanBefore(span, place.value.range, minute.value) };
  const before = useData(compare ? queryName(earlier) : null, (signal) => getUsage(earlier, signal));

  const made = useMemo(
    () =>
      named && all.data && (series.data || named.length === 0)
        ? exploreSeries({
            named,
            groupBy,
            parts: series.data ?? all.data,
            totals: all.data,
            span,
            measure,
            cumulative,
            lines: shape === "lines",
            rest: (groups.data?.row_count ?? 0) > named.length,
            before: compare ? before.data : undefined,
            earlier: earlier.span,
          })
        : null,
    [series.data, all.data, groups.data, before.data, measure.name, cumulative, shape, compare],
  );
  const failing = [groups, all, series].find((each) => each.problem) ?? groups;
  const loading = { ...failing, data: made ?? undefined, loading: groups.loading || series.loading || all.loading };
  const title = `${measure.words} by ${groupBy.map(dimensionWords).join(" and ")}`;
  const shownQuery = parts ?? ranked;
  return (
    <>
      <Controls
        measure={measure.name}
        group={group}
        sub={sub}
        top={top}
        shape={shape}
        cumulative={cumulative}
        additive={measure.additive}
        operator={operator}
      />
      <Panel
        title={title}
        note={span.words}
        loaded={loading}
        csv={csvHref(shownQuery)}
        curl={curlOf("usage", usageParams(shownQuery))}
        empty={groups.data?.row_count === 0 && "Nothing in this span under these filters."}
      >
        {made && shape !== "table" && (
          <Chart
            caption={caption(title, groups.data, measure.name, span.words, named)}
            times={made.times}
            series={made.series}
            granularity={span.granularity}
            zone={span.zone}
            height={360}
            stacked={shape === "stacked"}
            open={span.open}
          />
        )}
        {made && named && groups.data && (
          <ExploreTable usage={groups.data} groupBy={groupBy} named={named} measure={measure} series={made.series} />
        )}
      </Panel>
    </>
  );
}

function withoutGroups(filters: readonly Filter[], groupBy: readonly string[]): readonly Filter[] {
  return filters.filter(([name]) => !groupBy.includes(name));
}

function caption(
  title: string,
  usage: Usage | undefined,
  measure: string,
  words: string,
  named: string[][] | null,
): string {
  const first = named?.[0]?.map((value) => value || "(none)").join(" / ");
  return usage && first
    ? `${title}, ${inSentence(words)}: ${totalsOf(usage, measure)} in all; most by ${first}.`
    : title;
}

interface ControlsProps {
  measure: string;
  group: string;
  sub: string;
  top: number;
  shape: string;
  cumulative: boolean;
  additive: boolean;
  operator: boolean;
}

function Controls({ measure, group, sub, top, shape, cumulative, additive, operator }: ControlsProps) {
  const tags = useTagNames();
  const dimensions = [...DIMENSIONS.filter((name) => name !== "account" || operator), ...tags];
  const measures = MEASURES.filter((each) => operator || each.name !== "provider_cost_nanos");
  const span = pageSpan.value;
  return (
    <form class="controls" onSubmit={(event) => event.preventDefault()} aria-label="What is shown">
      <Select
        label="Measure"
        value={measure}
        options={measures.map((each) => [each.name, each.words])}
        onPick={(value) => setOption("measure", value)}
      />
      <Select
        label="By"
        value={group}
        options={dimensions.map((name) => [name, dimensionWords(name)])}
        onPick={(value) => setOption("group", value)}
      />
      <Select
        label="and"
        value={sub}
        options={[
          ["", "–"],
          ...dimensions.filter((name) => name !== group).map((name): [string, string] => [name, dimensionWords(name)]),
        ]}
        onPick={(value) => setOption("sub", value)}
      />
      <Select
        label="Top"
        value={String(top)}
        options={[3, 5, 6, 8, 10].map((each) => [String(each), String(each)])}
        onPick={(value) => setOption("top", value)}
      />
      <Select
        label="Roll-up"
        value={span.granularity}
        onPick={(value) => setOption("granularity", value)}
        options={GRANULARITIES.filter((each) => bucketCount(span, each) <= BUCKETS_MAX).map((each) => [each, each])}
      />
      <span class="tabs" role="group" aria-label="Form">
        {SHAPES.filter(([name]) => additive || name !== "stacked").map(([name, words]) => (
          <button
            key={name}
            type="button"
            class="tab"
            aria-pressed={shape === name}
            onClick={() => setOption("shape", name)}
          >
            {words}
          </button>
        ))}
      </span>
      {additive && (
        <label class="check">
          <input
            type="checkbox"
            checked={cumulative}
            onChange={(event) => setOption("sum", event.currentTarget.checked ? "1" : "")}
          />{" "}
          Cumulative
        </label>
      )}
    </form>
  );
}

interface SelectProps {
  label: string;
  value: string;
  options: [string, string][];
  onPick: (value: string) => void;
}

function Select({ label, value, options, onPick }: SelectProps) {
  return (
    <label class="pick">
      {label}
      <select value={value} onChange={(event) => onPick(event.currentTarget.value)}>
        {options.map(([name, words]) => (
          <option key={name} value={name}>
            {words}
          </option>
        ))}
      </select>
    </label>
  );
}
