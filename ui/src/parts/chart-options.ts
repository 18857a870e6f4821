/** uPlot's options for a chart of the page: colours of the theme, time zone, bars in buckets, zoom and crosshair. */
import uPlot from "uplot";
import { formatIn } from "../format/time";
import type { Granularity } from "../state/span";

export interface Drawn {
  width: number;
  height: number;
  zone: string;
  stacked: boolean;
  granularity: Granularity;
  /** The bar that may still grow: it is drawn lighter; -1 for none. */
  openAt: number;
  /** Without parts: no label of half a request. */
  whole: boolean;
  series: { label: string; colour: string; kind: "bar" | "line" | "area"; dashed: boolean }[];
  axis: (value: number) => string;
  onCursor: (index: number | null) => void;
  onZoom: (first: number, last: number) => void;
}

const crosshair = uPlot.sync("page");

export function chartOptions(drawn: Drawn, place: HTMLElement): uPlot.Options {
  const styles = getComputedStyle(place);
  const colour = (name: string): string => styles.getPropertyValue(name).trim() || "#888";
  const font = `11px ${styles.fontFamily}`;
  const bars = drawn.series.some((each) => each.kind === "bar");
  return {
    width: Math.max(drawn.width, 100),
    height: drawn.height,
    tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), drawn.zone === "UTC" ? "Etc/UTC" : drawn.zone),
    padding: [8, 8, 0, 0],
    legend: { show: false },
    cursor: {
      sync: { key: crosshair.key, setSeries: false },
      drag: { x: true, y: false, setScale: false },
      points: { size: 6, show: !bars },
      y: false,
    },
    scales: {
      x: {
        time: true,
        range: (_, min, max) =>
          bars ? around(min, max, drawn.granularity) : min === max ? [min - 1800, max + 1800] : [min, max],
      },
      y: { range: (_, __, max) => [0, max > 0 ? max * 1.06 : 1] },
    },
    axes: [
      {
        stroke: colour("--muted"),
        font,
        gap: 6,
        space: 64,
        size: (_, values) => ((values ?? []).some((text) => text.includes("\n")) ? 42 : 28),
        grid: { show: false },
        ticks: { stroke: colour("--line"), width: 1, size: 4 },
        values: (_, splits) =>
          splits.map((at, i) =>
            tickText(at * 1000, (splits[i - 1] ?? NaN) * 1000, (splits[1] ?? 0) - (splits[0] ?? 0), drawn.zone),
          ),
      },
      {
        stroke: colour("--muted"),
        font,
        gap: 6,
        space: 36,
        ...(drawn.whole ? { incrs: WHOLE_STEPS } : {}),
        size: (_, values) => 14 + 7 * Math.max(2, ...(values ?? []).map((text) => text.length)),
        grid: { stroke: colour("--line"), width: 1 },
        ticks: { show: false },
        values: (_, splits) => splits.map((value) => drawn.axis(value)),
      },
    ],
    series: [
      {},
      ...drawn.series.map((each): uPlot.Series => ({
        label: each.label,
        stroke: colour(each.colour),
        width: each.kind === "bar" ? 0 : 1.75,
        fill: each.kind === "bar" ? colour(each.colour) : each.kind === "area" ? faded(colour(each.colour)) : undefined,
        dash: each.dashed ? [4, 4] : undefined,
        alpha: each.dashed ? 0.7 : 1,
        paths: each.kind === "bar" ? barsOf(colour(each.colour), drawn.openAt) : undefined,
        points: { show: (plot: uPlot) => plot.data[0].length === 1 && each.kind !== "bar" },
        spanGaps: false,
      })),
    ],
    hooks: {
      setCursor: [(plot) => drawn.onCursor(plot.cursor.idx ?? null)],
      setSelect: [
        (plot) => {
          if (plot.select.width < 8) return;
          const first = plot.posToIdx(plot.select.left);
          const last = plot.posToIdx(plot.select.left + plot.select.width);
          plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
          drawn.onZoom(first, last);
        },
      ],
    },
  };
}

const WHOLE_STEPS = Array.from({ length: 16 }, (_, power) => [1, 2, 5].map((step) => step * 10 ** power)).flat();
const SECONDS: Record<Granularity, number> = { minute: 60, hour: 3600, day: 86_400, week: 604_800, month: 2_592_000 };

/** Room for half a bar at both ends. */
function around(min: number, max: number, granularity: Granularity): [number, number] {
  const half = SECONDS[granularity] * 0.6;
  return [min - half, max + half];
}

function barsOf(colour: string, openAt: number): uPlot.Series.PathBuilder | undefined {
  const lighter = /^#[0-9a-f]{6}$/i.test(colour) ? `${colour}77` : colour;
  const values = (plot: uPlot): string[] => Array.from(plot.data[0], (_, i) => (i === openAt ? lighter : colour));
  const facet = { unit: 3, values } as const;
  return uPlot.paths.bars?.({ size: [0.72, 48], radius: 0.12, disp: { fill: facet, stroke: facet } });
}

function tickText(ms: number, beforeMs: number, stepS: number, zone: string): string {
  if (stepS >= 27 * 86_400) return formatIn(zone, { month: "short", year: "2-digit" }).format(ms);
  const day = formatIn(zone, { day: "numeric", month: "short" });
  if (stepS >= 86_400) return day.format(ms);
  const time = formatIn(zone, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" }).format(ms);
  return Number.isNaN(beforeMs) || day.format(ms) !== day.format(beforeMs) ? `${time}\n${day.format(ms)}` : time;
}

function faded(colour: string): string {
  return /^#[0-9a-f]{6}$/i.test(colour) ? `${colour}22` : colour;
}
