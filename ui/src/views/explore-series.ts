/** Series of groups over time, and the exact rest: the total of each bucket less its groups. */
import { coordinate, shortText, measureOf, type Measure } from "../api/measures";
import { alignedRows, cellOf } from "../api/usage";
import type { Cell, Row, Usage } from "../api/types";
import type { Series } from "../parts/chart";
import { valueWords } from "../parts/words";
import type { Span } from "../state/span";

export const PALETTE_SIZE = 10;

interface Asked {
  /** The values of each group, the largest first. */
  named: string[][];
  groupBy: readonly string[];
  parts: Usage;
  totals: Usage;
  span: Span;
  measure: Measure;
  cumulative: boolean;
  lines: boolean;
  rest: boolean;
  before: Usage | undefined;
  earlier: Span;
}

/** The values of the groups of *usage*, in its order. */
export function topGroups(usage: Usage, groupBy: readonly string[]): string[][] {
  return usage.rows.map((row) => groupBy.map((name) => String(cellOf(row, name) ?? "")));
}

export function groupLabel(values: readonly string[], groupBy: readonly string[]): string {
  return values.map((value, i) => valueWords(groupBy[i] ?? "", value)).join(" / ");
}

export function totalsOf(usage: Usage, measure: string): string {
  return shortText(usage.totals[measure], measureOf(measure).unit);
}

export function exploreSeries(asked: Asked): { times: number[]; series: Series[] } {
  const { named, groupBy, parts, totals, span, measure, cumulative, lines, rest } = asked;
  const { times, rows } = alignedRows(totals, span);
  const byGroup = new Map<string, Map<number, Row>>();
  for (const row of parts.rows) {
    const name = JSON.stringify(groupBy.map((each) => String(cellOf(row, each) ?? "")));
    const found = byGroup.get(name) ?? new Map<number, Row>();
    found.set(Date.parse(String(row.time)), row);
    byGroup.set(name, found);
  }
  const cells = named.map((values) => {
    const found = byGroup.get(JSON.stringify(values));
    return times.map((time): Cell => found?.get(time)?.[measure.name] ?? null);
  });
  const kind = lines ? "line" : "bar";
  const make = (label: string, colour: string, column: (Cell | bigint)[]): Series => {
    const shown = cumulative ? running(column, measure) : column;
    const gap = measure.additive ? 0 : null;
    return {
      label,
      unit: measure.unit,
      colour,
      kind,
      cells: shown,
      values: shown.map((cell) => (cell === null ? gap : coordinate(cell, measure.unit))),
    };
  };
  const series = cells.map((column, i) =>
    make(groupLabel(named[i] ?? [], groupBy), `--c${(i % PALETTE_SIZE) + 1}`, column),
  );
  if (rest && measure.additive) {
    const left = times.map((_, at) =>
      subtract(
        rows[at]?.[measure.name] ?? null,
        cells.map((column) => column[at] ?? null),
        measure,
      ),
    );
    series.push(make("Other", "--other", left));
  }
  if (asked.before && measure.additive) {
    const old = alignedRows(asked.before, {
      ...asked.earlier,
      toMs: asked.earlier.fromMs + (span.toMs - span.fromMs),
    }).rows;
    series.push({
      ...make(
        "All, span before",
        "--muted",
        times.map((_, i) => old[i]?.[measure.name] ?? null),
      ),
      kind: "line",
      dashed: true,
    });
  }
  return { times, series };
}

function subtract(total: Cell, parts: Cell[], measure: Measure): Cell | bigint {
  if (total === null) return null;
  if (measure.unit === "money") return parts.reduce<bigint>((left, part) => left - BigInt(part ?? 0), BigInt(total));
  return parts.reduce<number>((left, part) => left - Number(part ?? 0), Number(total));
}

function running(cells: (Cell | bigint)[], measure: Measure): (Cell | bigint)[] {
  if (measure.unit === "money") {
    let sum = 0n;
    return cells.map((cell) => (sum += BigInt(cell ?? 0)));
  }
  let sum = 0;
  return cells.map((cell) => (sum += Number(cell ?? 0)));
}
