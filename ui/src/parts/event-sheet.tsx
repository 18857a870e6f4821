/** One request: its fields, its price line by line, and the call that reads it. */
import type { Params } from "../api/client";
import { curlOf } from "../api/usage";
import { keyOf, textOf, tokensOf } from "../api/events";
import type { MeterEvent } from "../api/types";
import { exactMoney, nanosOf, partialMoney } from "../format/money";
import { millisText } from "../format/number";
import { instantText } from "../format/time";
import { login } from "../state/login";
import { zone } from "../state/place";
import { CallButton, CopyButton } from "./call";
import { Dialog } from "./dialog";
import { fieldText } from "./fields";
import { REASONS } from "./words";

interface PriceLine {
  of: string;
  amount: string;
  /** Decimal text of nanos, as `nanos`. */
  rate_nanos_per_million?: string;
  rate_nanos?: string;
  nanos?: string;
}

interface Correction {
  id: string;
  at: string;
  revision: number;
  changed: Record<string, [unknown, unknown]>;
}

const FIELDS: readonly (readonly [field: string, words: string])[] = [
  ["account", "Account"],
  ["project", "Project"],
  ["kind", "Kind"],
  ["model", "Model"],
  ["variant", "Variant"],
  ["error_type", "Error"],
  ["cache", "Cache"],
  ["cost_state", "Cost is"],
  ["credits", "Credits"],
  ["bytes_out", "Bytes out"],
  ["revision", "Corrections"],
];

const COST_STATES: Record<string, string> = {
  priced: "priced by the price list",
  given: "stated by the caller",
  estimated: "an estimate until it is amended",
  free: "free",
  unpriced: "not known yet: the model has no price",
};

export function EventSheet({ event, onClose }: { event: MeterEvent; onClose: () => void }) {
  const reason = textOf(event, "denied_reason");
  const path = `events/${encodeURIComponent(event.id)}`;
  const params: Params = login.value?.role === "operator" ? [["account", event.account]] : [];
  const tags = Object.entries((event.tags as Record<string, string> | null) ?? {});
  const words = (field: string): string => {
    const value = textOf(event, field);
    return field === "cost_state" ? (COST_STATES[value] ?? value) : value;
  };
  return (
    <Dialog title="Request" sheet onClose={onClose}>
      <p class="event-line">
        <span class={`status ${reason ? "warn" : Number(event.status) >= 400 ? "bad" : "ok"}`}>
          {textOf(event, "status")}
        </span>{" "}
        <b>
          {textOf(event, "method")} {textOf(event, "route")}
        </b>
      </p>
      <p class="note">
        {instantText(Date.parse(event.time), zone.value, true)} ({zone.value}) ·{" "}
        {millisText(event.latency_ms as number | null)}
      </p>
      {reason && (
        <p class="problem">
          <strong>{REASONS[reason]?.[0] ?? reason}.</strong> {REASONS[reason]?.[1]} <code>{reason}</code>
        </p>
      )}
      <Price event={event} />
      <dl class="fields">
        <dt>Id</dt>
        <dd>
          <code>{event.id}</code>
        </dd>
        <dt>Key</dt>
        <dd>{keyOf(event) || "(none)"}</dd>
        {FIELDS.filter(([field]) => textOf(event, field) && textOf(event, field) !== "0").map(([field, label]) => [
          <dt key={field}>{label}</dt>,
          <dd key={`${field}-value`}>{words(field)}</dd>,
        ])}
        {tags.map(([name, value]) => [<dt key={name}>tag {name}</dt>, <dd key={`${name}-value`}>{value}</dd>])}
      </dl>
      <Corrections event={event} />
      <p class="below">
        <CopyButton text={event.id} words="Copy id" /> <CallButton curl={curlOf(path, params)} what="this request" />
      </p>
    </Dialog>
  );
}

/** Line by line as the server works it out; a server of before the lines says only what was booked. */
function Price({ event }: { event: MeterEvent }) {
  const cost = nanosOf(textOf(event, "cost_nanos"));
  const price = event.price as { why: string; lines: PriceLine[] } | undefined;
  const counted: PriceLine[] = tokensOf(event).map(([name, count]) => ({
    of: `${name}_tokens`,
    amount: String(count),
  }));
  const lines = price && price.lines.length > 0 ? price.lines : counted;
  return (
    <table class="price">
      <caption>How the price came about{price && `: ${price.why}`}</caption>
      <thead>
        <tr>
          <th scope="col">Of</th>
          <th scope="col" class="num">
            Count
          </th>
          <th scope="col" class="num">
            Rate
          </th>
          <th scope="col" class="num">
            Amount
          </th>
        </tr>
      </thead>
      <tbody>
        {lines.map((line) => (
          <tr key={line.of}>
            <th scope="row">{line.of.replaceAll("_", " ")}</th>
            <td class="num">{grouped(line.amount)}</td>
            <td class="num">{rateWords(line)}</td>
            <td class="num">{line.nanos === undefined ? "–" : partialMoney(line.nanos)}</td>
          </tr>
        ))}
      </tbody>
      <tfoot>
        <tr>
          <th scope="row" colSpan={3}>
            Booked
          </th>
          <td class="num">
            <b>{cost === null ? "–" : exactMoney(cost)}</b>
          </td>
        </tr>
        {typeof event.provider_cost_nanos === "string" && (
          <tr>
            <th scope="row" colSpan={3}>
              Provider’s cost
            </th>
            <td class="num">{exactMoney(BigInt(event.provider_cost_nanos))}</td>
          </tr>
        )}
      </tfoot>
    </table>
  );
}

function rateWords(line: PriceLine): string {
  if (line.rate_nanos_per_million !== undefined) return `${partialMoney(line.rate_nanos_per_million)} per million`;
  return line.rate_nanos === undefined ? "–" : partialMoney(line.rate_nanos);
}

function grouped(amount: string): string {
  const [whole = "", part] = amount.split(".");
  const text = whole.replace(/\B(?=(\d{3})+$)/g, ",");
  return part === undefined ? text : `${text}.${part}`;
}

function Corrections({ event }: { event: MeterEvent }) {
  const corrections = (event.corrections as Correction[] | undefined) ?? [];
  if (corrections.length === 0) return null;
  return (
    <section class="below">
      <h3>Corrections</h3>
      <ul class="plain">
        {corrections.map((each) => (
          <li key={each.revision}>
            <span class="note">
              {instantText(Date.parse(each.at), zone.value, true)} · {each.id}
            </span>
            <ul class="plain changes">
              {Object.entries(each.changed).map(([name, [before, now]]) => (
                <li key={name}>
                  <code>{name}</code> <del>{fieldText(name, before)}</del> → <ins>{fieldText(name, now)}</ins>
                </li>
              ))}
            </ul>
          </li>
        ))}
      </ul>
    </section>
  );
}
