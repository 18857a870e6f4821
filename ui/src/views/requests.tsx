/** All requests of the span under the filters, page by page. */
import { useEffect, useState } from "preact/hooks";
import { Problem } from "../api/client";
import { eventParams, getEvents } from "../api/events";
import type { MeterEvent } from "../api/types";
import { curlOf } from "../api/usage";
import { Panel, ProblemNote } from "../parts/panel";
import { EventTable } from "../parts/requests";
import { useData } from "../state/data";
import { place } from "../state/place";
import { span } from "../state/span";

const PAGE = 50;

export function Requests() {
  const params = eventParams(span.value, place.value.filters, PAGE);
  const name = `events ${JSON.stringify(params)}`;
  const [older, setOlder] = useState<{ events: MeterEvent[]; cursor: string | null } | null>(null);
  // Not live below the first page: what moves on from it would be on none.
  const loaded = useData(name, (signal) => getEvents(params, signal), older === null);
  const [problem, setProblem] = useState<Problem | null>(null);
  const [busy, setBusy] = useState(false);
  useEffect(() => {
    setOlder(null);
    setProblem(null);
  }, [name]);
  const first = loaded.data;
  const cursor = older ? older.cursor : (first?.next_cursor ?? null);
  const shown = [...(first?.events ?? []), ...(older?.events ?? [])];
  const unique = [...new Map(shown.map((event) => [`${event.account}/${event.id}`, event])).values()];
  const more = async (): Promise<void> => {
    setBusy(true);
    try {
      const page = await getEvents(eventParams(span.value, place.value.filters, PAGE, cursor));
      setOlder({ events: [...(older?.events ?? []), ...page.events], cursor: page.next_cursor });
      setProblem(null);
    } catch (error) {
      setProblem(error instanceof Problem ? error : new Problem(0, String(error)));
    }
    setBusy(false);
  };
  return (
    <Panel
      title="Requests"
      note={span.value.words}
      loaded={loaded}
      curl={curlOf("events", params)}
      empty={first !== undefined && unique.length === 0 && !cursor && "No request in this span under these filters."}
    >
      <EventTable events={unique} />
      {problem && <ProblemNote problem={problem} />}
      {cursor && (
        <button type="button" class="button more" disabled={busy} onClick={() => void more()}>
          {busy ? "Loading …" : "Older requests"}
        </button>
      )}
    </Panel>
  );
}
