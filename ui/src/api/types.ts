/** The parts of the API's answers that the page reads (`GET tk/v1/openapi.json` has all). Money is text, in nanos. */

export type Role = "operator" | "management" | "consumption";

export interface Login {
  role: Role;
  account: string | null;
  key: string | null;
  expires_at: string;
  csrf: string;
}

export type Cell = string | number | null;
export type Row = Record<string, Cell>;

export interface Usage {
  rows: Row[];
  totals: Row;
  row_count: number;
  next_offset: number | null;
  from: string;
  to: string;
  as_of: string;
  complete: boolean;
  behind_s: number;
  detail_from: string | null;
  lacks_detail: boolean;
}

export interface LimitStatus {
  name: string;
  unit: string;
  allowed: number | string | null;
  used: number | string | null;
  remaining: number | string | null;
  resets_at: string | null;
  match: string | null;
  per: string[] | null;
}

export interface KeyState {
  key_id: string;
  account: string;
  project: string | null;
  state: string;
  type: string;
  plan: string | null;
  subscription: string | null;
  expires_at: string | null;
  limits: LimitStatus[];
  budgets: LimitStatus[];
  credit: LimitStatus | null;
}

export interface GrantStatus {
  id: string;
  amount_nanos: string;
  remaining_nanos: string;
  priority: number;
  expires_at: string | null;
  expired: boolean;
  revoked_at: string | null;
}

export interface Balance {
  account: string;
  balance_nanos: string;
  held_nanos: string;
  available_nanos: string;
  spent_nanos: string;
  overdraft_nanos: string;
  surplus_nanos: string;
  grants: GrantStatus[];
}

export interface Page<T> {
  items: T[];
  next: string | null;
}

export interface Account {
  id: string;
  name: string;
  plan: string | null;
  time_zone: string;
  active: boolean;
}

export interface Key {
  id: string;
  account: string;
  project: string | null;
  name: string;
  role: "consumption" | "management";
  type: string;
  subscription: string | null;
  plan: string | null;
  state: string;
  expires_at: string | null;
  prefix: string;
  created_at: string;
  last_used_at: string | null;
  revoked_at: string | null;
  replaced_by: string | null;
}

export interface AuditItem {
  seq: number;
  at: string;
  actor: string;
  account: string | null;
  kind: string;
  id: string;
  action: string;
  fields: Record<string, [unknown, unknown]>;
  unit: string | null;
}

export interface Verify {
  ok: boolean;
  differences: { account: string; what: string; expected: string; found: string }[];
  store_differences: string[];
  accounts: number;
  counters: number;
}

export interface MeterEvent {
  id: string;
  time: string;
  account: string;
  [field: string]: unknown;
}

export interface EventPage {
  events: MeterEvent[];
  next_cursor: string | null;
  complete: boolean;
}
