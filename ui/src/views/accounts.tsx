/** Accounts: search, state, plan, what each used in the span, when it was used last. */
import { useState } from "preact/hooks";
import { getAll } from "../api/catalog";
import { csvHref, curlOf, getUsage, queryName, type Query } from "../api/usage";
import type { Account, Row } from "../api/types";
import { shortText, exactText, measureOf } from "../api/measures";
import { fromNow } from "../format/time";
import { Panel } from "../parts/panel";
import { useData } from "../state/data";
import { hrefOf, onLink } from "../state/place";
import { minute, span } from "../state/span";

const SHOWN = 100;
const COLUMNS = ["cost_nanos", "requests", "errors", "denied"];

/** Narrow panels leave out what the entry's own page has. */
function numberClass(name: string): string {
  return name === "errors" || name === "denied" ? "num least" : "num";
}

export function Accounts() {
  const [text, setText] = useState("");
  const [limit, setLimit] = useState(SHOWN);
  const loaded = useData("accounts", (signal) => getAll<Account>("accounts", [], signal), false);
  const query: Query = {
    span: span.value,
    filters: [],
    measures: [...COLUMNS, "last_at"],
    groupBy: ["account"],
    sort: "-cost_nanos",
    limit: 50_000,
  };
  const usage = useData(queryName(query), (signal) => getUsage(query, signal));
  const used = new Map<string, Row>(usage.data?.rows.map((row) => [String(row.account), row]));
  const order = new Map([...used.keys()].map((id, i) => [id, i]));
  const wanted = text.trim().toLowerCase();
  const found = (loaded.data?.items ?? [])
    .filter((each) => !wanted || each.id.toLowerCase().includes(wanted) || each.name.toLowerCase().includes(wanted))
    .sort((a, b) => (order.get(a.id) ?? 1e9) - (order.get(b.id) ?? 1e9));
  const search = (
    <input
      type="search"
      class="search"
      data-search
      placeholder="Search accounts"
      aria-label="Search accounts"
      value={text}
      onInput={(event) => setText(event.currentTarget.value)}
    />
  );
  return (
    <Panel
      title="Accounts"
      note={loaded.data && `${found.length} of ${loaded.data.items.length}${loaded.data.more ? "+" : ""}`}
      loaded={loaded}
      tools={search}
      csv={csvHref(query)}
      curl={curlOf("accounts", [])}
      empty={
        loaded.data !== undefined &&
        found.length === 0 &&
        (wanted ? `No account matches “${text}”.` : "There is no account yet.")
      }
    >
      <div class="scroll">
        <table class="list">
          <caption class="sr">Accounts with their use in {span.value.words}</caption>
          <thead>
            <tr>
              <th scope="col">Account</th>
              <th scope="col">Plan</th>
              {COLUMNS.map((name) => (
                <th key={name} scope="col" class={numberClass(name)}>
                  {measureOf(name).words}
                </th>
              ))}
              <th scope="col">Last use in the span</th>
            </tr>
          </thead>
          <tbody>
            {found.slice(0, limit).map((account) => {
              const row = used.get(account.id);
              const target = { view: "account", id: account.id, filters: [] } as const;
              return (
                <tr key={account.id}>
                  <th scope="row">
                    <a class="row" data-row href={hrefOf(target)} onClick={onLink(target)}>
                      {account.name || account.id}
                    </a>
                    <span class="note">
                      {" "}
                      {account.name && account.id}
                      {!account.active && " · inactive"}
                    </span>
                  </th>
                  <td>{account.plan ?? "–"}</td>
                  {COLUMNS.map((name) => (
                    <td key={name} class={numberClass(name)} title={exactText(row?.[name], measureOf(name).unit)}>
                      {row ? shortText(row[name], measureOf(name).unit) : "–"}
                    </td>
                  ))}
                  <td>{row?.last_at ? fromNow(Date.parse(String(row.last_at)), minute.value) : "–"}</td>
                </tr>
              );
            })}
          </tbody>
        </table>
      </div>
      {found.length > limit && (
        <button type="button" class="button more" onClick={() => setLimit(limit + 400)}>
          Show more
        </button>
      )}
    </Panel>
  );
}
