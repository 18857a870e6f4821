/** Headline numbers of the span, each compared with the span before, as tabs of one chart; errors and latency beside it. */
import { useMemo } from "preact/hooks";
import { amountOf, coordinate, exactText, measureOf, shortText, type Measure } from "../api/measures";
import { alignedRows, csvHref, curlOf, getUsage, queryName, usageParams, type Query } from "../api/usage";
import type { Cell, Row, Usage } from "../api/types";
import { changeText } from "../format/number";
import { bucketText } from "../format/time";
import { useData } from "../state/data";
import { hrefOf, onLink, place, setOption, type Filter } from "../state/place";
import { minute, span as pageSpan, spanBefore, type Span } from "../state/span";
import { Chart, openIndex, type Series } from "./chart";
import { Panel } from "./panel";
import { Sparkline } from "./sparkline";

/** A headline: a measure of the answer, or one made of them exactly, as the margin. */
export interface Headline {
  name: string;
  words: string;
  unit: Measure["unit"];
  of: (row: Row) => Cell | bigint;
  /** Whether more is good, bad, or neither: says the colour of a change. */
  more: "good" | "bad" | "neither";
}

export function headline(name: string, more: Headline["more"] = "neither", words = measureOf(name).words): Headline {
  return { name, words, unit: measureOf(name).unit, of: (row) => row[name] ?? null, more };
}

interface TrendsProps {
  headlines: readonly Headline[];
  measures: readonly string[];
  filters: readonly Filter[];
}

export function Trends({ headlines, measures, filters }: TrendsProps) {
  const span = pageSpan.value;
  const before = spanBefore(span, place.value.range, minute.value);
  const asked = [...new Set([...measures, "errors", "denied", "latency_ms_p50", "latency_ms_p95"])];
  const query: Query = { span, filters, measures: asked, series: true, limit: 5000 };
  const earlier: Query = { ...query, span: before };
  const loaded = useData(queryName(query), (signal) => getUsage(query, signal));
  const compared = useData(queryName(earlier), (signal) => getUsage(earlier, signal));
  const chosen = headlines.find((each) => each.name === place.value.options.measure) ?? headlines[0];
  const usage = loaded.data;
  const empty = usage?.rows.length === 0 && "Nothing was recorded in this span.";
  const requests = { view: "requests", filters } as const;
  if (!chosen) return null;
  return (
    <div class="trends">
      <ul class={`tiles of-${headlines.length}`}>
        {headlines.map((each) => (
          <Tile key={each.name} headline={each} usage={usage} before={compared.data} span={span} on={each === chosen} />
        ))}
      </ul>
      <div class="trend-charts">
        <Panel title={`${chosen.words} over time`} note={noteOf(span, usage)} tools={<a class="tool" href={hrefOf(requests)} onClick={onLink(requests)}>Requests</a>} loaded={loaded} csv={csvHref(query)} class="wide"
          curl={curlOf("usage", usageParams(query))} empty={empty}>
          {usage && <MainChart headline={chosen} usage={usage} before={place.value.compare ? compared.data : undefined} span={span} earlier={before} changed={compared.data} />}
        </Panel>
        <Panel title="Errors and refusals" loaded={loaded} empty={empty}>{usage && <ErrorChart usage={usage} span={span} />}</Panel>
        <Panel title="Latency" loaded={loaded} empty={empty}>{usage && <LatencyChart usage={usage} span={span} />}</Panel>
      </div>
    </div>
  );
}

/** The span, and what the answer says that it lacks. */
function noteOf(span: Span, usage: Usage | undefined): string {
  const lacks = !usage || usage.complete ? ""
    : usage.lacks_detail ? `single events before ${usage.detail_from ?? ""} have expired: the numbers lack them`
    : `some requests are still on their way, the oldest for ${usage.behind_s} s`;
  return [span.words, span.open && "still open", lacks].filter(Boolean).join(" · ");
}

interface TileProps {
  headline: Headline;
  usage: Usage | undefined;
  before: Usage | undefined;
  span: Span;
  on: boolean;
}

function Tile({ headline, usage, before, span, on }: TileProps) {
  const { of, unit, words } = headline;
  const now = usage ? of(usage.totals) : null;
  const was = before ? of(before.totals) : null;
  const values = useMemo(
    () => {
      if (!usage) return [];
      const { times, rows } = alignedRows(usage, span);
      return rows.slice(0, span.open ? openIndex(times) + 1 : rows.length).map((row) => (row ? coordinate(of(row), unit) : 0));
    },
    [usage, span, headline.name],
  );
  const change = usage && before ? changeText(amountOf2(now), amountOf2(was)) : null;
  return (
    <li>
      <button type="button" class="tile" aria-pressed={on} onClick={() => setOption("measure", headline.name)}>
        <span class="tile-name">{words}</span>
        <b class="tile-value" title={exactText(now, unit)}>{usage ? shortText(now, unit) : " "}</b>
        <span class={`tile-change ${tone(headline, now, was)}`}>
          {change === null ? " " : change === "new" ? "none before" : <>{change} <span class="was">from {shortText(was, unit)}</span></>}
        </span>
        <Sparkline values={values} />
      </button>
    </li>
  );
}

function amountOf2(cell: Cell | bigint): bigint | number {
  return typeof cell === "bigint" ? cell : typeof cell === "string" ? (amountOf(cell, "money") ?? 0) : (cell ?? 0);
}

function tone({ more }: Headline, now: Cell | bigint, was: Cell | bigint): string {
  const [a, b] = [amountOf2(now), amountOf2(was)];
  if (more === "neither" || a === b || was === null) return "";
  return a > b === (more === "good") ? "up" : "down";
}

interface MainProps {
  headline: Headline;
  usage: Usage;
  before: Usage | undefined;
  changed: Usage | undefined;
  span: Span;
  earlier: Span;
}

function MainChart({ headline, usage, before, changed, span, earlier }: MainProps) {
  const { of, unit, words } = headline;
  const { times, rows } = useMemo(() => alignedRows(usage, span), [usage, span]);
  const series = useMemo(() => {
    const kind = unit === "ms" ? "line" : "bar";
    const made: Series[] = [seriesOf(words, unit, "--accent", kind, rows.map((row) => (row ? of(row) : null)))];
    if (before) {
      const old = alignedRows(before, { ...earlier, toMs: earlier.fromMs + (span.toMs - span.fromMs) }).rows;
      const cells = times.map((_, i) => { const row = old[i]; return row ? of(row) : null; });
      made.push({ ...seriesOf("Span before", unit, "--muted", "line", cells), dashed: true });
    }
    return made;
  }, [times, rows, headline.name, before]);
  return (
    <Chart caption={finding(headline, usage, changed, times, rows, span)} times={times} series={series} granularity={span.granularity}
      zone={span.zone} height={386} open={span.open} />
  );
}

/** Words of a span within a sentence. */
export function inSentence(words: string): string {
  return words.charAt(0).toLowerCase() + words.slice(1);
}

/** A sentence that says what the chart shows. */
function finding(headline: Headline, usage: Usage, before: Usage | undefined, times: number[], rows: (Row | null)[], span: Span): string {
  const { of, unit, words } = headline;
  const total = of(usage.totals);
  if (usage.rows.length === 0) return `${words}, ${inSentence(span.words)}: nothing was recorded.`;
  let top = -1;
  rows.forEach((row, i) => {
    if (row && (top < 0 || coordinate(of(row), unit) > coordinate(of(rows[top] ?? row), unit))) top = i;
  });
  const change = before ? changeText(amountOf2(total), amountOf2(of(before.totals))) : null;
  const against = change === null ? "" : change === "new" ? ", nothing in the span before" : `, ${change} on the span before`;
  const peak = top < 0 || times.length < 2 ? "" : ` Most: ${shortText(of(rows[top] ?? {}), unit)}, ${bucketText(times[top] ?? 0, span.granularity, span.zone)}.`;
  return `${words}, ${inSentence(span.words)}: ${shortText(total, unit)}${unit === "ms" ? " over the whole span" : ""}${against}.${peak}`;
}

export function seriesOf(label: string, unit: Measure["unit"], colour: string, kind: Series["kind"], cells: (Cell | bigint)[]): Series {
  const gap = kind === "line" ? null : 0;
  return { label, unit, colour, kind, cells, values: cells.map((cell) => (cell === null ? gap : coordinate(cell, unit))) };
}

function ErrorChart({ usage, span }: { usage: Usage; span: Span }) {
  const { times, rows } = useMemo(() => alignedRows(usage, span), [usage, span]);
  const series = useMemo(() => {
    const denied = rows.map((row) => Number(row?.denied ?? 0));
    // Refusals have a status of 4xx, so they are among the errors; here each request is drawn once.
    const failed = rows.map((row, i) => Math.max(0, Number(row?.errors ?? 0) - (denied[i] ?? 0)));
    return [seriesOf("Errors", "count", "--bad", "bar", failed), seriesOf("Refused", "count", "--warn", "bar", denied)];
  }, [rows]);
  const [errors, denied, all] = [Number(usage.totals.errors), Number(usage.totals.denied), Number(usage.totals.requests ?? 0)];
  const failed = Math.max(0, errors - denied);
  const share = all > 0 ? ` of ${shortText(all, "count")} requests` : "";
  const caption = errors === 0 ? "No request failed or was refused." : `${shortText(failed, "count")} failed and ${shortText(denied, "count")} refused${share}.`;
  return <Chart caption={caption} times={times} series={series} granularity={span.granularity} zone={span.zone} height={112} stacked open={span.open} />;
}

function LatencyChart({ usage, span }: { usage: Usage; span: Span }) {
  const { times, rows } = useMemo(() => alignedRows(usage, span), [usage, span]);
  const series = useMemo(
    () => [
      seriesOf("p95", "ms", "--accent", "line", rows.map((row) => row?.latency_ms_p95 ?? null)),
      seriesOf("p50", "ms", "--second", "line", rows.map((row) => row?.latency_ms_p50 ?? null)),
    ],
    [rows],
  );
  const { latency_ms_p50: half, latency_ms_p95: most } = usage.totals;
  const caption = most === null ? "No latency was recorded." : `Half within ${shortText(half, "ms")}, 95 % within ${shortText(most, "ms")}.`;
  return <Chart caption={caption} times={times} series={series} granularity={span.granularity} zone={span.zone} height={112} open={span.open} />;
}
