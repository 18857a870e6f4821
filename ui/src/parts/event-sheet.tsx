/** One request: its fields, its price line by line, and the call that reads it. */
import { getJson, type Params } from "../api/client";
import { curlOf } from "../api/usage";
import { keyOf, textOf, tokensOf } from "../api/events";
import type { MeterEvent } from "../api/types";
import { exactMoney, nanosOf } from "../format/money";
import { countText, millisText } from "../format/number";
import { instantText } from "../format/time";
import { useData } from "../state/data";
import { login } from "../state/login";
import { zone } from "../state/place";
import { CallButton, CopyButton } from "./call";
import { Dialog } from "./dialog";
import { priceLines, type ShownPrice } from "./price-lines";
import { REASONS } from "./words";

const FIELDS: readonly (readonly [field: string, words: string])[] = [
  ["account", "Account"], ["project", "Project"], ["kind", "Kind"], ["model", "Model"], ["variant", "Variant"], ["error_type", "Error"],
  ["cache", "Cache"], ["cost_state", "Cost is"], ["price_version", "Price"], ["credits", "Credits"], ["bytes_out", "Bytes out"], ["revision", "Corrections"],
];

const COST_STATES: Record<string, string> = {
  priced: "priced by the price list", given: "stated by the caller", estimated: "an estimate until it is amended", free: "free",
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
        <span class={`status ${reason ? "warn" : Number(event.status) >= 400 ? "bad" : "ok"}`}>{textOf(event, "status")}</span>{" "}
        <b>{textOf(event, "method")} {textOf(event, "route")}</b>
      </p>
      <p class="note">{instantText(Date.parse(event.time), zone.value, true)} ({zone.value}) · {millisText(event.latency_ms as number | null)}</p>
      {reason && <p class="problem"><strong>{REASONS[reason]?.[0] ?? reason}.</strong> {REASONS[reason]?.[1]} <code>{reason}</code></p>}
      <Price event={event} />
      <dl class="fields">
        <dt>Id</dt><dd><code>{event.id}</code></dd>
        <dt>Key</dt><dd>{keyOf(event) || "(none)"}</dd>
        {FIELDS.filter(([field]) => textOf(event, field) && textOf(event, field) !== "0").map(([field, label]) => [
          <dt key={field}>{label}</dt>, <dd key={`${field}-value`}>{words(field)}</dd>,
        ])}
        {tags.map(([name, value]) => [<dt key={name}>tag {name}</dt>, <dd key={`${name}-value`}>{value}</dd>])}
      </dl>
      <p><CopyButton text={event.id} words="Copy id" /> <CallButton curl={curlOf(path, params)} what="this request" /></p>
    </Dialog>
  );
}

function Price({ event }: { event: MeterEvent }) {
  const cost = nanosOf(textOf(event, "cost_nanos"));
  const tokens = tokensOf(event);
  const model = textOf(event, "model");
  const priced = event.cost_state === "priced" && model !== "" && login.value?.role === "operator";
  const params: Params = [
    ["name", model], ["account", event.account], ["at", event.time], ...(textOf(event, "variant") ? [["variant", textOf(event, "variant")] as const] : []),
  ];
  const shown = useData(priced ? `price ${JSON.stringify(params)}` : null, (signal) => getJson<ShownPrice>("prices/show", params, signal), false);
  const lines = priced && shown.data ? priceLines(event, shown.data) : null;
  return (
    <table class="price">
      <caption>How the price came about</caption>
      <thead><tr><th scope="col">Of</th><th scope="col" class="num">Count</th><th scope="col" class="num">Per million</th><th scope="col" class="num">Amount</th></tr></thead>
      <tbody>
        {lines
          ? lines.lines.map((line) => (
            <tr key={line.of}><th scope="row">{line.of}</th><td class="num">{line.count}</td><td class="num">{line.rate}</td><td class="num">{line.amount}</td></tr>
          ))
          : tokens.map(([name, count]) => (
            <tr key={name}><th scope="row">{name} tokens</th><td class="num">{countText(count)}</td><td class="num">–</td><td class="num">–</td></tr>
          ))}
      </tbody>
      <tfoot>
        <tr><th scope="row" colSpan={3}>Booked</th><td class="num"><b>{cost === null ? "–" : exactMoney(cost)}</b></td></tr>
        {lines && cost !== null && lines.sum !== cost && (
          <tr><td colSpan={4} class="note">At today’s prices it would be {exactMoney(lines.sum)}: {textOf(event, "price_version")} was in force.</td></tr>
        )}
        {typeof event.provider_cost_nanos === "string" && (
          <tr><th scope="row" colSpan={3}>Provider’s cost</th><td class="num">{exactMoney(BigInt(event.provider_cost_nanos))}</td></tr>
        )}
      </tfoot>
    </table>
  );
}
