/** Fields of entries and corrections as people read them. */
import { exactMoney } from "../format/money";
import { instantText } from "../format/time";
import { zone } from "../state/place";

export function blank(value: unknown): boolean {
  return (
    value === null || value === "" || (typeof value === "object" && value !== null && Object.keys(value).length === 0)
  );
}

/** A field of an entry as people read it. */
export function fieldText(name: string, value: unknown, unit: string | null = null): string {
  if (value === null || value === undefined) return "–";
  if (/_nanos(_per_million)?$/.test(name) && /^-?\d+$/.test(String(value))) return exactMoney(BigInt(String(value)));
  if (name === "amount" && unit === "nanos") return exactMoney(BigInt(String(value)));
  if (name.endsWith("_at") && typeof value === "string")
    return Date.parse(value) === 0 ? "from the start" : instantText(Date.parse(value), zone.value);
  if (Array.isArray(value))
    return value.map((each) => fieldText("", each)).join(typeof value[0] === "object" ? "; " : ", ");
  if (typeof value !== "object") return String(value);
  const fields = value as Record<string, unknown>;
  return Object.keys(fields)
    .filter((each) => !blank(fields[each]))
    .map((each) => `${each} ${fieldText(each, fields[each], String(fields.unit ?? ""))}`)
    .join(", ");
}
