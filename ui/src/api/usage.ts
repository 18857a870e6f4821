/** The usage query: its parameters, the call as curl, and its answer as series and groups. */
import type { Filter } from "../state/place";
import { bucketStarts, type Span } from "../state/span";
import { API, getJson, urlOf, type Params } from "./client";
import { inTurn } from "./turns";
import type { Cell, Row, Usage } from "./types";

export interface Query {
  span: Span;
  filters: readonly Filter[];
  measures: readonly string[];
  groupBy?: readonly string[];
  /** With a row per bucket of the span. */
  series?: boolean;
  sort?: string;
  limit?: number;
  granularity?: string;
}

export function usageParams(query: Query): Params {
  const { span, filters, measures, groupBy = [], series = false, sort, limit } = query;
  const params: [string, string][] = [
    ["from", span.from],
    ["to", span.to],
  ];
  if (span.zone !== "UTC") params.push(["time_zone", span.zone]);
  if (series) params.push(["granularity", query.granularity ?? span.granularity]);
  if (groupBy.length > 0) params.push(["group_by", groupBy.join(",")]);
  params.push(["measures", measures.join(",")]);
  if (sort) params.push(["sort", sort]);
  if (limit !== undefined) params.push(["limit", String(limit)]);
  for (const [name, value] of filters) params.push([name, value.replaceAll(",", "\\,")]);
  return params;
}

export function getUsage(query: Query, signal?: AbortSignal): Promise<Usage> {
  return inTurn(signal, () => getJson<Usage>("usage", usageParams(query), signal));
}

/** A name for the query: equal queries have equal names. */
export function queryName(query: Query): string {
  return urlOf("usage", usageParams(query));
}

/** The absolute address of the API's call. */
export function callUrl(path: string, params: Params): string {
  return new URL(urlOf(API + path, params), document.baseURI).href;
}

export function csvHref(query: Query): string {
  return urlOf(`${API}usage`, [
    ...usageParams(query).filter(([name]) => name !== "limit"),
    ["limit", "50000"],
    ["format", "csv"],
  ]);
}

/** The call for a shell. The key stays a variable, so that the line can be shown to others. */
export function curlOf(path: string, params: Params, method = "GET"): string {
  const verb = method === "GET" ? "" : `-X ${method} `;
  return `curl -s ${verb}-H "Authorization: Bearer $TOLLKEEPER_KEY" '${callUrl(path, params).replaceAll("'", "%27")}'`;
}

/** The rows of a series at every bucket of its span: null where no event was. */
export function alignedRows(usage: Usage, span: Span): { times: number[]; rows: (Row | null)[] } {
  const found = new Map(usage.rows.map((row) => [Date.parse(String(row.time)), row]));
  const times = [...new Set([...bucketStarts(span), ...found.keys()])].sort((a, b) => a - b);
  return { times, rows: times.map((at) => found.get(at) ?? null) };
}

export function numberOf(cell: Cell | undefined): number {
  return cell === null || cell === undefined ? 0 : Number(cell);
}

/** The name of a tag's column: as it was asked for, or as servers of before named it. */
export function cellOf(row: Row, dimension: string): Cell {
  const cell = row[dimension];
  return (cell === undefined ? row[dimension.replace("tag.", "tag:")] : cell) ?? null;
}
