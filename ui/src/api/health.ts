/** The operator's health figures: Prometheus text of `tk/v1/metrics`. */
import { API, getText } from "./client";

export interface Health {
  holds: number | null;
  outbox: number | null;
  outboxAgeS: number | null;
  setAside: number | null;
  relayFailing: boolean;
  refusing: boolean;
  /** Of the last verify; null when none ran since the start. */
  verifiedAt: number | null;
  differences: number | null;
  backupAt: number | null;
  version: string;
}

export async function getHealth(signal?: AbortSignal): Promise<Health> {
  const text = await getText(`${API}metrics`, signal);
  const found = new Map<string, number>();
  for (const line of text.split("\n")) {
    const match = /^([a-z_]+)(?:\{[^}]*\})? ([^ ]+)/.exec(line);
    if (match?.[1]) found.set(match[1], Number(match[2]));
  }
  const value = (name: string): number | null => found.get(`tollkeeper_${name}`) ?? null;
  const instant = (name: string): number | null => {
    const seconds = value(name);
    return seconds ? seconds * 1000 : null;
  };
  return {
    holds: value("holds_open"),
    outbox: value("outbox_records"),
    outboxAgeS: value("outbox_age_seconds"),
    setAside: value("outbox_set_aside_records"),
    relayFailing: value("relay_failing") === 1,
    refusing: value("gate_refusing") === 1,
    verifiedAt: instant("reconcile_timestamp_seconds"),
    differences: value("reconcile_differences"),
    backupAt: instant("backup_timestamp_seconds"),
    version: /tollkeeper_build_info\{version="([^"]*)"/.exec(text)?.[1] ?? "",
  };
}
