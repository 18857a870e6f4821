/** Groups of a dimension by value: a click filters everything; the last row is the rest. Sums are exact. */
import { useState } from "preact/hooks";
import { amountOf, exactText, measureOf, shortText } from "../api/measures";
import { cellOf, csvHref, curlOf, getUsage, queryName, usageParams, type Query } from "../api/usage";
import type { Row, Usage } from "../api/types";
import { shareText } from "../format/number";
import { place, toggleFilter, type Filter } from "../state/place";
import { useData } from "../state/data";
import type { Span } from "../state/span";
import { Panel } from "./panel";
import { dimensionWords, valueWords } from "./words";

const TOP = 8;
const COLUMNS = ["cost_nanos", "requests", "tokens", "errors"];

interface BreakdownProps {
  title: string;
  /** Tabs; the first is shown first. */
  dimensions: readonly string[];
  span: Span;
  filters: readonly Filter[];
  measure: string;
  /** What of a value is opened beside the filter, e.g. the page of an account. */
  link?: (dimension: string, value: string) => string | null;
}

export function Breakdown({ title, dimensions, span, filters, measure, link }: BreakdownProps) {
  const [chosen, setChosen] = useState("");
  const [limit, setLimit] = useState(TOP);
  const dimension = dimensions.includes(chosen) ? chosen : (dimensions[0] ?? "model");
  const columns = COLUMNS.includes(measure) ? COLUMNS : [measure, ...COLUMNS.slice(0, 3)];
  const query: Query = { span, filters, measures: columns, groupBy: [dimension], sort: `-${measure}`, limit };
  const loaded = useData(queryName(query), (signal) => getUsage(query, signal));
  const usage = loaded.data;
  const tabs = dimensions.length > 1 && (
    <span class="tabs" role="group" aria-label={`${title} by`}>
      {dimensions.map((name) => (
        <button key={name} type="button" class="tab" aria-pressed={name === dimension} onClick={() => { setChosen(name); setLimit(TOP); }}>
          {dimensionWords(name)}
        </button>
      ))}
    </span>
  );
  return (
    <Panel title={title} tools={tabs} csv={csvHref(query)} curl={curlOf("usage", usageParams(query))} loaded={loaded}
      empty={usage?.row_count === 0 && "Nothing in this span."}>
      {usage && (
        <>
          <GroupTable usage={usage} dimension={dimension} columns={columns} measure={measure} link={link} />
          {usage.row_count > usage.rows.length && (
            <button type="button" class="tool more" onClick={() => setLimit(limit * 5)}>
              Show more of {usage.row_count}
            </button>
          )}
        </>
      )}
    </Panel>
  );
}

interface TableProps {
  usage: Usage;
  dimension: string;
  columns: readonly string[];
  measure: string;
  link?: BreakdownProps["link"];
}

function GroupTable({ usage, dimension, columns, measure, link }: TableProps) {
  const { unit, additive } = measureOf(measure);
  const total = amountOf(usage.totals[measure], unit) ?? 0;
  const most = usage.rows.reduce<number>((size, row) => Math.max(size, Number(amountOf(row[measure], unit) ?? 0)), 0);
  const rest = restOf(usage, columns);
  const width = (row: Row): string => `${100 * (most === 0 ? 0 : Number(amountOf(row[measure], unit) ?? 0) / most)}%`;
  return (
    <div class="scroll">
      <table class="groups">
        <caption class="sr">{dimensionWords(dimension)} by {measureOf(measure).words}</caption>
        <thead>
          <tr>
            <th scope="col">{dimensionWords(dimension)}</th>
            {columns.map((name) => <th key={name} scope="col" class="num">{measureOf(name).words}</th>)}
            {additive && <th scope="col" class="num">Share</th>}
          </tr>
        </thead>
        <tbody>
          {usage.rows.map((row) => {
            const value = String(cellOf(row, dimension) ?? "");
            const on = place.value.filters.some(([name, other]) => name === dimension && other === value);
            const href = link?.(dimension, value);
            return (
              <tr key={value} class={on ? "on" : undefined}>
                <th scope="row">
                  <svg class="row-bar" width="100%" height="100%" aria-hidden="true"><rect width={width(row)} height="100%" rx="3" /></svg>
                  <button type="button" class="row" data-row aria-pressed={on} title={`${value} – click to filter`}
                    onClick={() => toggleFilter(dimension, value)}>
                    {valueWords(dimension, value)}
                  </button>
                  {href && <a class="open-link" href={href} aria-label={`Open ${value}`}>↗</a>}
                </th>
                {columns.map((name) => <Amount key={name} row={row} name={name} />)}
                {additive && <td class="num">{shareText(amountOf(row[measure], unit) ?? 0, total)}</td>}
              </tr>
            );
          })}
          {rest && (
            <tr class="rest">
              <th scope="row">Other ({usage.row_count - usage.rows.length})</th>
              {columns.map((name) => <Amount key={name} row={rest} name={name} />)}
              {additive && <td class="num">{shareText(amountOf(rest[measure], unit) ?? 0, total)}</td>}
            </tr>
          )}
        </tbody>
      </table>
    </div>
  );
}

function Amount({ row, name }: { row: Row; name: string }) {
  const { unit } = measureOf(name);
  return <td class="num" title={exactText(row[name], unit)}>{shortText(row[name], unit)}</td>;
}

/** What is not in the rows: totals less their sum, exactly; null when all are there. */
export function restOf(usage: Usage, columns: readonly string[]): Row | null {
  if (usage.row_count <= usage.rows.length) return null;
  const rest: Row = {};
  for (const name of columns) {
    const { unit, additive } = measureOf(name);
    if (!additive) rest[name] = null;
    else if (unit === "money") {
      const sum = usage.rows.reduce((part, row) => part + BigInt(row[name] ?? 0), 0n);
      rest[name] = (BigInt(usage.totals[name] ?? 0) - sum).toString();
    } else {
      rest[name] = Number(usage.totals[name] ?? 0) - usage.rows.reduce((part, row) => part + Number(row[name] ?? 0), 0);
    }
  }
  return rest;
}

