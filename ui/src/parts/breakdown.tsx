/** Groups of a dimension by value: a click filters everything; the last row is the rest. Sums are exact. */
import { useState } from "preact/hooks";
import { amountOf, exactText, measureOf, shortText } from "../api/measures";
import { cellOf, csvHref, curlOf, getUsage, queryName, usageParams, type Query } from "../api/usage";
import type { Row, Usage } from "../api/types";
import { changeText, shareText } from "../format/number";
import { hrefOf, onLink, place, toggleFilter, type Filter } from "../state/place";
import { useData } from "../state/data";
import { minute, spanBefore, type Span } from "../state/span";
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
  const compare = place.value.compare && measureOf(measure).additive;
  const earlier: Query = {
    ...query,
    span: spanBefore(span, place.value.range, minute.value),
    measures: [measure],
    limit: 10_000,
  };
  const before = useData(compare ? queryName(earlier) : null, (signal) => getUsage(earlier, signal));
  const usage = loaded.data;
  const tabs = dimensions.length > 1 && (
    <span class="tabs" role="group" aria-label={`${title} by`}>
      {dimensions.map((name) => (
        <button
          key={name}
          type="button"
          class="tab"
          aria-pressed={name === dimension}
          onClick={() => {
            setChosen(name);
            setLimit(TOP);
          }}
        >
          {dimensionWords(name)}
        </button>
      ))}
    </span>
  );
  const explore = { view: "explore", filters, options: { group: dimension, measure } } as const;
  const tools = (
    <>
      {tabs}
      <a class="tool" href={hrefOf(explore)} onClick={onLink(explore)} aria-label={`Explore ${title}`}>
        Explore
      </a>
    </>
  );
  return (
    <Panel
      title={title}
      tools={tools}
      csv={csvHref(query)}
      curl={curlOf("usage", usageParams(query))}
      loaded={loaded}
      empty={usage?.row_count === 0 && "Nothing in this span."}
    >
      {usage && (
        <>
          <GroupTable
            usage={usage}
            dimension={dimension}
            columns={columns}
            measure={measure}
            link={link}
            before={compare ? before.data : undefined}
          />
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
  /** The same groups in the span before: the last column is then the change. */
  before: Usage | undefined;
}

function GroupTable({ usage, dimension, columns, measure, link, before }: TableProps) {
  const { unit, additive } = measureOf(measure);
  const total = amountOf(usage.totals[measure], unit) ?? 0;
  const most = usage.rows.reduce<number>((size, row) => Math.max(size, Number(amountOf(row[measure], unit) ?? 0)), 0);
  const rest = restOf(usage, columns);
  const earlier = new Map(before?.rows.map((row) => [String(cellOf(row, dimension) ?? ""), row]));
  const known = new Set(usage.rows.map((row) => String(cellOf(row, dimension) ?? "")));
  const last = (row: Row, value: string | null): string => {
    const amount = amountOf(row[measure], unit) ?? 0;
    if (!before) return shareText(amount, total);
    if (value !== null) return changeText(amount, amountOf(earlier.get(value)?.[measure], unit) ?? 0) ?? "±0 %";
    const others = [...earlier].filter(([name]) => !known.has(name)).map(([, each]) => each);
    return (
      changeText(
        amount,
        others.reduce<bigint | number>(
          (sum, each) => plus(sum, amountOf(each[measure], unit) ?? 0),
          unit === "money" ? 0n : 0,
        ),
      ) ?? "±0 %"
    );
  };
  const width = (row: Row): string => `${100 * (most === 0 ? 0 : Number(amountOf(row[measure], unit) ?? 0) / most)}%`;
  return (
    <div class="scroll">
      <table class="groups">
        <caption class="sr">
          {dimensionWords(dimension)} by {measureOf(measure).words}
        </caption>
        <thead>
          <tr>
            <th scope="col">{dimensionWords(dimension)}</th>
            {columns.map((name, i) => (
              <th key={name} scope="col" class={`num ${columnClass(i)}`}>
                {measureOf(name).words}
              </th>
            ))}
            {additive && (
              <th scope="col" class="num">
                {before ? "Change" : "Share"}
              </th>
            )}
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
                  <svg class="row-bar" width="100%" height="100%" aria-hidden="true">
                    <rect width={width(row)} height="100%" rx="3" />
                  </svg>
                  <button
                    type="button"
                    class="row"
                    data-row
                    aria-pressed={on}
                    title={`${value} – click to filter`}
                    onClick={() => toggleFilter(dimension, value)}
                  >
                    {valueWords(dimension, value)}
                  </button>
                  {href && (
                    <a class="open-link" href={href} aria-label={`Open ${value}`}>
                      ↗
                    </a>
                  )}
                </th>
                {columns.map((name, i) => (
                  <Amount key={name} row={row} name={name} class={columnClass(i)} />
                ))}
                {additive && <td class="num">{last(row, value)}</td>}
              </tr>
            );
          })}
          {rest && (
            <tr class="rest">
              <th scope="row">Other ({usage.row_count - usage.rows.length})</th>
              {columns.map((name, i) => (
                <Amount key={name} row={rest} name={name} class={columnClass(i)} />
              ))}
              {additive && <td class="num">{last(rest, null)}</td>}
            </tr>
          )}
        </tbody>
      </table>
    </div>
  );
}

function plus(a: bigint | number, b: bigint | number): bigint | number {
  return typeof a === "bigint" && typeof b === "bigint" ? a + b : Number(a) + Number(b);
}

/** Narrow panels leave out the last columns; the CSV has them. */
function columnClass(index: number): string {
  return index >= 2 ? "least" : index === 1 ? "less" : "";
}

function Amount({ row, name, class: column }: { row: Row; name: string; class: string }) {
  const { unit } = measureOf(name);
  return (
    <td class={`num ${column}`} title={exactText(row[name], unit)}>
      {shortText(row[name], unit)}
    </td>
  );
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
