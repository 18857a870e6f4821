/** Why was I refused: denials by reason, what was hit, and what to do. */
import { csvHref, curlOf, getUsage, queryName, usageParams, type Query } from "../api/usage";
import { exactText } from "../api/measures";
import { shareText } from "../format/number";
import { fromNow } from "../format/time";
import { useData } from "../state/data";
import { hrefOf, onLink, toggleFilter, type Filter, type Place } from "../state/place";
import { minute, span as pageSpan } from "../state/span";
import { Panel } from "./panel";
import { REASONS } from "./words";

export function Refused({ filters }: { filters: readonly Filter[] }) {
  const query: Query = {
    span: pageSpan.value,
    filters,
    measures: ["denied", "requests", "last_at"],
    groupBy: ["denied_reason", "status"],
    sort: "-denied",
    limit: 30,
  };
  const loaded = useData(queryName(query), (signal) => getUsage(query, signal));
  const usage = loaded.data;
  const rows = usage?.rows.filter((row) => row.denied_reason) ?? [];
  const denied = Number(usage?.totals.denied ?? 0);
  const share =
    usage && denied > 0 ? `${exactText(denied, "count")} of ${exactText(usage.totals.requests, "count")} requests` : "";
  const behind = (reason: string): Partial<Place> => ({
    view: "requests",
    filters: [...filters, ["denied_reason", reason]],
  });
  return (
    <Panel
      title="Why requests were refused"
      note={share}
      loaded={loaded}
      csv={csvHref(query)}
      curl={curlOf("usage", usageParams(query))}
      empty={usage !== undefined && rows.length === 0 && "No request was refused in this span."}
    >
      <ul class="reasons">
        {rows.map((row) => {
          const reason = String(row.denied_reason);
          const [words, advice] = REASONS[reason] ?? [reason, ""];
          const count = Number(row.denied);
          return (
            <li key={reason + String(row.status)}>
              <button
                type="button"
                class="row"
                data-row
                onClick={() => toggleFilter("denied_reason", reason)}
                title="Click to filter"
              >
                <b>{words}</b> <code>{reason}</code> <span class="note">{String(row.status)}</span>
              </button>
              <span class="num">
                {exactText(count, "count")} · {shareText(count, denied)}
              </span>
              <svg class="bar thin" width="100%" height="4" aria-hidden="true">
                <rect class="track" width="100%" height="4" rx="2" />
                <rect class="fill" width={`${denied === 0 ? 0 : (100 * count) / denied}%`} height="4" rx="2" />
              </svg>
              <p class="note">
                <a href={hrefOf(behind(reason))} onClick={onLink(behind(reason))}>
                  Requests
                </a>{" "}
                {advice} {row.last_at && `Last ${fromNow(Date.parse(String(row.last_at)), minute.value)}.`}
              </p>
            </li>
          );
        })}
      </ul>
    </Panel>
  );
}
