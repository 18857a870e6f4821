/**
 * What the page shows, as its URL states it: view, entry, one range, one set of filters, and options of the view. Back,
 * reload and a pasted link give the same page. Filters have the names of the API's parameters.
 */
import { computed, signal } from "@preact/signals";

export const VIEWS = [
  "home",
  "overview",
  "account",
  "key",
  "accounts",
  "keys",
  "explore",
  "requests",
  "plans",
  "prices",
  "webhooks",
  "audit",
] as const;
export type View = (typeof VIEWS)[number];

export const DIMENSIONS = [
  "account",
  "project",
  "key",
  "model",
  "endpoint",
  "status",
  "kind",
  "error_type",
  "denied_reason",
  "cache",
  "method",
  "route",
] as const;

export type Filter = readonly [dimension: string, value: string];

export interface Place {
  view: View;
  /** Of an account or key. */
  id: string;
  /** A preset of `state/span`, or "" when `from` and `to` state it. */
  range: string;
  from: string;
  to: string;
  zone: string;
  compare: boolean;
  filters: readonly Filter[];
  /** What only one view knows, e.g. `measure`. */
  options: Readonly<Record<string, string>>;
}

const RANGE_DEFAULT = "30d";
const OWN = ["view", "id", "range", "from", "to", "zone", "compare"];

export function parsePlace(search: string): Place {
  const params = new URLSearchParams(search);
  const view = params.get("view") ?? "home";
  const from = params.get("from") ?? "";
  const to = params.get("to") ?? "";
  const filters: Filter[] = [];
  const options: Record<string, string> = {};
  for (const [name, value] of params) {
    if (isDimension(name)) filters.push([name, value]);
    else if (!OWN.includes(name)) options[name] = value;
  }
  return {
    view: (VIEWS as readonly string[]).includes(view) ? (view as View) : "home",
    id: params.get("id") ?? "",
    range: from && to ? "" : (params.get("range") ?? RANGE_DEFAULT),
    from,
    to,
    zone: params.get("zone") ?? "UTC",
    compare: params.get("compare") === "1",
    filters: applicable(view, filters),
    options,
  };
}

/** The page of an account or key is its own filter: another of the same dimension would widen its numbers. */
function applicable(view: string, filters: readonly Filter[]): readonly Filter[] {
  const own = view === "key" ? ["account", "key"] : view === "account" ? ["account"] : [];
  return filters.filter(([name]) => !own.includes(name));
}

export function searchOf(place: Place): string {
  const params = new URLSearchParams();
  if (place.view !== "home") params.set("view", place.view);
  if (place.id) params.set("id", place.id);
  if (!place.range) {
    params.set("from", place.from);
    params.set("to", place.to);
  } else if (place.range !== RANGE_DEFAULT) params.set("range", place.range);
  if (place.zone !== "UTC") params.set("zone", place.zone);
  if (place.compare) params.set("compare", "1");
  for (const [name, value] of applicable(place.view, place.filters)) params.append(name, value);
  for (const [name, value] of Object.entries(place.options)) if (value) params.set(name, value);
  const text = params.toString();
  return text ? `?${text}` : "";
}

export const place = signal<Place>(parsePlace(location.search));
/** A stable name of range and filters. */
export const zone = computed(() => place.value.zone);

/** The address of another place; range and filters stay unless changed. Options belong to a view and go with it. */
export function hrefOf(changes: Partial<Place>): string {
  const now = place.value;
  const leaves = changes.view !== undefined && changes.view !== now.view;
  return searchOf({ ...now, ...(leaves ? { id: "", options: {} } : {}), ...changes }) || location.pathname;
}

export function go(changes: Partial<Place>, replace = false): void {
  const leaves = changes.view !== undefined && changes.view !== place.value.view;
  const href = hrefOf(changes);
  if (href === (location.search || location.pathname)) return;
  history[replace ? "replaceState" : "pushState"](null, "", href);
  place.value = parsePlace(location.search);
  if (leaves || changes.id !== undefined) scrollTo(0, 0);
}

export function setOption(name: string, value: string): void {
  go({ options: { ...place.value.options, [name]: value } }, true);
}

/** Add the filter, or take it away when it is there. */
export function toggleFilter(dimension: string, value: string): void {
  const now = place.value.filters;
  const rest = now.filter(([name, other]) => name !== dimension || other !== value);
  go({ filters: rest.length < now.length ? rest : [...now, [dimension, value]] });
}

export function isDimension(name: string): boolean {
  return (DIMENSIONS as readonly string[]).includes(name) || (name.startsWith("tag.") && name.length > 4);
}

export function watchHistory(): void {
  addEventListener("popstate", () => {
    place.value = parsePlace(location.search);
  });
}

/** A link within the page: no reload on a plain click; a new tab and a copied link work. */
export function onLink(changes: Partial<Place>): (event: MouseEvent) => void {
  return (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey || event.button !== 0) return;
    event.preventDefault();
    go(changes);
  };
}
