/** The groups of Explore with their sums; a click filters by the group's values. */
import { amountOf, columnPlaces, exactText, type Measure } from "../api/measures";
import type { Usage } from "../api/types";
import { restOf } from "../parts/breakdown";
import type { Series } from "../parts/chart";
import { dimensionWords } from "../parts/words";
import { shareText } from "../format/number";
import { go, place, type Filter } from "../state/place";
import { groupLabel } from "./explore-series";

interface ExploreTableProps {
  usage: Usage;
  groupBy: readonly string[];
  named: string[][];
  measure: Measure;
  series: readonly Series[];
}

export function ExploreTable({ usage, groupBy, named, measure, series }: ExploreTableProps) {
  const total = amountOf(usage.totals[measure.name], measure.unit) ?? 0;
  const rest = restOf(usage, [measure.name]);
  const places = columnPlaces(
    [...usage.rows, rest ?? {}, usage.totals].map((row) => row[measure.name]),
    measure.unit,
  );
  const share = (cell: string | number | null | undefined): string =>
    shareText(amountOf(cell, measure.unit) ?? 0, total);
  const pick = (values: string[]): void => {
    const others = place.value.filters.filter(([name]) => !groupBy.includes(name));
    go({ filters: [...others, ...groupBy.map((name, i): Filter => [name, values[i] ?? ""])] });
  };
  return (
    <div class="scroll below">
      <table class="list">
        <caption class="sr">
          {measure.words} by {groupBy.map(dimensionWords).join(" and ")}
        </caption>
        <thead>
          <tr>
            <th scope="col">{groupBy.map(dimensionWords).join(" / ")}</th>
            <th scope="col" class="num">
              {measure.words}
            </th>
            {measure.additive && (
              <th scope="col" class="num">
                Share
              </th>
            )}
          </tr>
        </thead>
        <tbody>
          {named.map((values, i) => (
            <tr key={JSON.stringify(values)}>
              <th scope="row">
                <svg width="10" height="10" aria-hidden="true">
                  <rect width="10" height="10" rx="2" fill={`var(${series[i]?.colour ?? "--muted"})`} />
                </svg>{" "}
                <button type="button" class="row" data-row onClick={() => pick(values)}>
                  {groupLabel(values, groupBy)}
                </button>
              </th>
              <td class="num">{exactText(usage.rows[i]?.[measure.name], measure.unit, places)}</td>
              {measure.additive && <td class="num">{share(usage.rows[i]?.[measure.name])}</td>}
            </tr>
          ))}
          {rest && measure.additive && (
            <tr class="rest">
              <th scope="row">Other ({usage.row_count - usage.rows.length})</th>
              <td class="num">{exactText(rest[measure.name], measure.unit, places)}</td>
              <td class="num">{share(rest[measure.name])}</td>
            </tr>
          )}
        </tbody>
        <tfoot>
          <tr>
            <th scope="row">All</th>
            <td class="num">{exactText(usage.totals[measure.name], measure.unit, places)}</td>
            {measure.additive && <td class="num">100 %</td>}
          </tr>
        </tfoot>
      </table>
    </div>
  );
}
