/**
 * A time series: a figure with a caption that says the finding, a canvas, and a table of the same array. Drag to zoom;
 * all charts of a view share the crosshair.
 */
import { useEffect, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import { axisText, columnPlaces, exactText, shortText, type Measure } from "../api/measures";
import type { Cell } from "../api/types";
import { bucketText } from "../format/time";
import { colours } from "../state/preferences";
import { go } from "../state/place";
import { iso, minute, type Granularity } from "../state/span";
import { chartOptions, type Drawn } from "./chart-options";

export interface Series {
  label: string;
  unit: Measure["unit"];
  /** A custom property of the page's CSS, e.g. `--accent`. */
  colour: string;
  kind: "bar" | "line" | "area";
  dashed?: boolean;
  /** One per time, exact; null where there was nothing. */
  cells: readonly (Cell | bigint)[];
  /** Coordinates; null is a gap. */
  values: readonly (number | null)[];
}

interface ChartProps {
  caption: string;
  /** Starts of buckets, ms. */
  times: readonly number[];
  series: readonly Series[];
  granularity: Granularity;
  zone: string;
  height?: number;
  stacked?: boolean;
  /** The bucket of now may still grow. */
  open?: boolean;
}

export function Chart({
  caption,
  times,
  series,
  granularity,
  zone,
  height = 220,
  stacked = false,
  open = false,
}: ChartProps) {
  const box = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const [at, setAt] = useState<number | null>(null);
  const openAt = open ? openIndex(times) : -1;
  const unit = series[0]?.unit ?? "count";
  const shape = series.map((each) => each.label + each.colour + each.kind + String(each.dashed)).join("|");
  const theme = colours.value;
  const latest = useRef({ times });
  latest.current = { times };

  useEffect(() => {
    const place = box.current;
    if (!place) return;
    const drawn: Drawn = {
      width: place.clientWidth,
      height,
      zone,
      stacked,
      granularity,
      openAt,
      whole: unit === "count",
      series: series.map(({ label, colour, kind, dashed }) => ({ label, colour, kind, dashed: dashed ?? false })),
      axis: (value) => axisText(value, unit),
      onCursor: setAt,
      onZoom: (first, last) => {
        const shown = latest.current.times;
        const [from, to] = [shown[first], shown[last + 1] ?? (shown[last] ?? 0) + ((shown[1] ?? 0) - (shown[0] ?? 0))];
        if (from !== undefined && to > from) go({ range: "", from: iso(from), to: iso(to) });
      },
    };
    const made = new uPlot(chartOptions(drawn, place), dataOf(times, series, stacked), place);
    plot.current = made;
    const watcher = new ResizeObserver(() => {
      if (place.clientWidth > 0 && place.clientWidth !== made.width) made.setSize({ width: place.clientWidth, height });
    });
    watcher.observe(place);
    return () => {
      watcher.disconnect();
      made.destroy();
      plot.current = null;
    };
  }, [shape, theme, height, zone, stacked, granularity, unit, times.length, openAt]);
  useEffect(() => {
    plot.current?.setData(dataOf(times, series, stacked));
  }, [times, series]);

  const places = series.map((each) => columnPlaces(each.cells, each.unit));
  const shownAt = at !== null && at < times.length ? at : null;
  return (
    <figure class="chart">
      <figcaption>{caption}</figcaption>
      <div class="readout" aria-hidden="true">
        {series.map((each) => (
          <span key={each.label} class="key">
            <svg width="10" height="10">
              <rect width="10" height="10" rx="2" fill={`var(${each.colour})`} fill-opacity={each.dashed ? 0.5 : 1} />
            </svg>
            {each.label}
            {shownAt !== null && <b>{shortText(each.cells[shownAt], each.unit)}</b>}
          </span>
        ))}
        <span class="when">
          {shownAt === null ? "" : bucketText(times[shownAt] ?? 0, granularity, zone)}
          {shownAt !== null && shownAt === openAt && " · open"}
        </span>
      </div>
      <div class="canvas" ref={box} aria-hidden="true" style={{ minHeight: `${height}px` }} />
      <details class="data">
        <summary>Table of this chart</summary>
        <div class="scroll" tabIndex={0} role="group" aria-label={`Table: ${caption}`}>
          <table>
            <caption>{caption}</caption>
            <thead>
              <tr>
                <th scope="col">
                  {granularity} ({zone})
                </th>
                {series.map((each) => (
                  <th key={each.label} scope="col" class="num">
                    {each.label}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {times.map((time, row) => (
                <tr key={time}>
                  <th scope="row">
                    {bucketText(time, granularity, zone)}
                    {row === openAt && <em> so far</em>}
                  </th>
                  {series.map((each, i) => (
                    <td key={each.label} class="num">
                      {exactText(each.cells[row], each.unit, places[i])}
                    </td>
                  ))}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      </details>
    </figure>
  );
}

/** The bucket that now is in; those after it have not begun. */
export function openIndex(times: readonly number[]): number {
  return times.filter((time) => time <= minute.value).length - 1;
}

function dataOf(times: readonly number[], series: readonly Series[], stacked: boolean): uPlot.AlignedData {
  const columns = series.map((each) => [...each.values]);
  if (stacked) {
    // Each on top of those after it: the first is drawn first and is the tallest. Lines are not part of the stack.
    const bars = columns.filter((_, i) => series[i]?.kind === "bar");
    for (let i = bars.length - 2; i >= 0; i--) {
      const [upper, lower] = [bars[i], bars[i + 1]];
      if (upper && lower)
        for (let row = 0; row < upper.length; row++) upper[row] = (upper[row] ?? 0) + (lower[row] ?? 0);
    }
  }
  return [times.map((ms) => ms / 1000), ...columns];
}
