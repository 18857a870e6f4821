/** Requests: a table of single events, newest first, each opening a sheet with its price line by line. */
import { useState } from "preact/hooks";
import { columnPlaces } from "../api/measures";
import { curlOf } from "../api/usage";
import { eventParams, getEvents, keyOf, textOf, tokensOf } from "../api/events";
import type { MeterEvent } from "../api/types";
import { exactMoney, nanosOf } from "../format/money";
import { countText, millisText } from "../format/number";
import { instantText } from "../format/time";
import { useData } from "../state/data";
import { hrefOf, onLink, zone, type Filter } from "../state/place";
import { span as pageSpan } from "../state/span";
import { EventSheet } from "./event-sheet";
import { Panel } from "./panel";
import { valueWords } from "./words";

const RECENT = 12;

export function RecentRequests({ filters }: { filters: readonly Filter[] }) {
  const params = eventParams(pageSpan.value, filters, RECENT);
  const loaded = useData(`recent ${JSON.stringify(params)}`, (signal) => getEvents(params, signal));
  const all = { view: "requests", filters } as const;
  return (
    <Panel
      title="Recent requests"
      loaded={loaded}
      curl={curlOf("events", params)}
      tools={
        <a class="tool" href={hrefOf(all)} onClick={onLink(all)}>
          All requests
        </a>
      }
      empty={
        loaded.data?.events.length === 0 && (loaded.data.next_cursor ? "Nothing lately." : "No request in this span.")
      }
    >
      {loaded.data && <EventTable events={loaded.data.events} />}
    </Panel>
  );
}

export function EventTable({ events }: { events: readonly MeterEvent[] }) {
  const [open, setOpen] = useState<MeterEvent | null>(null);
  const places = columnPlaces(
    events.map((event) => textOf(event, "cost_nanos") || null),
    "money",
  );
  return (
    <>
      <div class="scroll">
        <table class="events">
          <caption class="sr">Requests, the newest first</caption>
          <thead>
            <tr>
              <th scope="col">Time ({zone.value})</th>
              <th scope="col">Key</th>
              <th scope="col">Request</th>
              <th scope="col">Model</th>
              <th scope="col">Status</th>
              <th scope="col" class="num">
                Cost
              </th>
              <th scope="col" class="num">
                Tokens
              </th>
              <th scope="col" class="num">
                Latency
              </th>
            </tr>
          </thead>
          <tbody>
            {events.map((event) => (
              <EventRow
                key={`${event.account}/${event.id}`}
                event={event}
                places={places}
                onOpen={() => setOpen(event)}
              />
            ))}
          </tbody>
        </table>
      </div>
      {open && <EventSheet event={open} onClose={() => setOpen(null)} />}
    </>
  );
}

function EventRow({ event, places, onOpen }: { event: MeterEvent; places: number; onOpen: () => void }) {
  const status = Number(event.status ?? 0);
  const refused = textOf(event, "denied_reason");
  const cost = nanosOf(textOf(event, "cost_nanos"));
  const tokens = tokensOf(event).reduce((sum, [, count]) => sum + count, 0);
  return (
    <tr>
      <th scope="row">
        <button type="button" class="row" data-row onClick={onOpen}>
          {instantText(Date.parse(event.time), zone.value, true)}
        </button>
      </th>
      <td>{keyOf(event) || "(none)"}</td>
      <td class="path">
        {textOf(event, "method")} {textOf(event, "route")}
      </td>
      <td>{textOf(event, "model") || "–"}</td>
      <td>
        <span class={`status ${refused ? "warn" : status >= 400 ? "bad" : "ok"}`}>{status || "–"}</span>{" "}
        {refused && <span class="note">{valueWords("denied_reason", refused)}</span>}
        {Number(event.revision ?? 0) > 0 && <span class="note">corrected</span>}
      </td>
      <td class="num">{cost === null ? "–" : exactMoney(cost, places)}</td>
      <td class="num">{tokens ? countText(tokens) : "–"}</td>
      <td class="num">{millisText(event.latency_ms as number | null)}</td>
    </tr>
  );
}
