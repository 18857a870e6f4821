/** The charts of a span: the chosen headline, errors and refusals, latency; each with a sentence that says its finding. */
import { useMemo } from "preact/hooks";
import { coordinate, shortText, type Measure } from "../api/measures";
import { alignedRows } from "../api/usage";
import type { Cell, Row, Usage } from "../api/types";
import { changeText } from "../format/number";
import { bucketText } from "../format/time";
import type { Span } from "../state/span";
import { Chart, type Series } from "./chart";
import { comparable, inSentence, type Headline } from "./headline";

interface MainProps {
  headline: Headline;
  usage: Usage;
  before: Usage | undefined;
  changed: Usage | undefined;
  span: Span;
  earlier: Span;
}

export function MainChart({ headline, usage, before, changed, span, earlier }: MainProps) {
  const { of, unit, words } = headline;
  const { times, rows } = useMemo(() => alignedRows(usage, span), [usage, span]);
  const series = useMemo(() => {
    const kind = unit === "ms" ? "line" : "bar";
    const made: Series[] = [
      seriesOf(
        words,
        unit,
        "--accent",
        kind,
        rows.map((row) => (row ? of(row) : null)),
      ),
    ];
    if (before) {
      const old = alignedRows(before, { ...earlier, toMs: earlier.fromMs + (span.toMs - span.fromMs) }).rows;
      const cells = times.map((_, i) => {
        const row = old[i];
        return row ? of(row) : null;
      });
      made.push({ ...seriesOf("Span before", unit, "--muted", "line", cells), dashed: true });
    }
    return made;
  }, [times, rows, headline.name, before]);
  return (
    <Chart
      caption={finding(headline, usage, changed, times, rows, span)}
      times={times}
      series={series}
      granularity={span.granularity}
      zone={span.zone}
      height={386}
      open={span.open}
    />
  );
}

/** A sentence that says what the chart shows. */
function finding(
  headline: Headline,
  usage: Usage,
  before: Usage | undefined,
  times: number[],
  rows: (Row | null)[],
  span: Span,
): string {
  const { of, unit, words } = headline;
  const total = of(usage.totals);
  if (usage.rows.length === 0) return `${words}, ${inSentence(span.words)}: nothing was recorded.`;
  let top = -1;
  rows.forEach((row, i) => {
    if (row && (top < 0 || coordinate(of(row), unit) > coordinate(of(rows[top] ?? row), unit))) top = i;
  });
  const change = before ? changeText(comparable(total), comparable(of(before.totals))) : null;
  const against =
    change === null ? "" : change === "new" ? ", nothing in the span before" : `, ${change} on the span before`;
  const peak =
    top < 0 || times.length < 2
      ? ""
      : ` Most: ${shortText(of(rows[top] ?? {}), unit)}, ${bucketText(times[top] ?? 0, span.granularity, span.zone)}.`;
  const whole = unit === "ms" ? " over the whole span" : "";
  return `${words}, ${inSentence(span.words)}: ${shortText(total, unit)}${whole}${against}.${peak}`;
}

export function seriesOf(
  label: string,
  unit: Measure["unit"],
  colour: string,
  kind: Series["kind"],
  cells: (Cell | bigint)[],
): Series {
  const gap = kind === "line" ? null : 0;
  return {
    label,
    unit,
    colour,
    kind,
    cells,
    values: cells.map((cell) => (cell === null ? gap : coordinate(cell, unit))),
  };
}

export function ErrorChart({ usage, span }: { usage: Usage; span: Span }) {
  const { times, rows } = useMemo(() => alignedRows(usage, span), [usage, span]);
  const series = useMemo(() => {
    const denied = rows.map((row) => Number(row?.denied ?? 0));
    // Refusals have a status of 4xx, so they are among the errors; here each request is drawn once.
    const failed = rows.map((row, i) => Math.max(0, Number(row?.errors ?? 0) - (denied[i] ?? 0)));
    return [seriesOf("Errors", "count", "--bad", "bar", failed), seriesOf("Refused", "count", "--warn", "bar", denied)];
  }, [rows]);
  const [errors, denied, all] = [
    Number(usage.totals.errors),
    Number(usage.totals.denied),
    Number(usage.totals.requests ?? 0),
  ];
  const failed = Math.max(0, errors - denied);
  const share = all > 0 ? ` of ${shortText(all, "count")} requests` : "";
  const caption =
    errors === 0
      ? "No request failed or was refused."
      : `${shortText(failed, "count")} failed and ${shortText(denied, "count")} refused${share}.`;
  return (
    <Chart
      caption={caption}
      times={times}
      series={series}
      granularity={span.granularity}
      zone={span.zone}
      height={112}
      stacked
      open={span.open}
    />
  );
}

export function LatencyChart({ usage, span }: { usage: Usage; span: Span }) {
  const { times, rows } = useMemo(() => alignedRows(usage, span), [usage, span]);
  const series = useMemo(
    () => [
      seriesOf(
        "p95",
        "ms",
        "--accent",
        "line",
        rows.map((row) => row?.latency_ms_p95 ?? null),
      ),
      seriesOf(
        "p50",
        "ms",
        "--second",
        "line",
        rows.map((row) => row?.latency_ms_p50 ?? null),
      ),
    ],
    [rows],
  );
  const { latency_ms_p50: half, latency_ms_p95: most } = usage.totals;
  const caption =
    most === null
      ? "No latency was recorded."
      : `Half within ${shortText(half, "ms")}, 95 % within ${shortText(most, "ms")}.`;
  return (
    <Chart
      caption={caption}
      times={times}
      series={series}
      granularity={span.granularity}
      zone={span.zone}
      height={112}
      open={span.open}
    />
  );
}
