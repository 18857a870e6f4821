/** Keys: list with search and use; create, rotate, deactivate and revoke for the operator and management keys. */
import { useState } from "preact/hooks";
import { getAll } from "../api/catalog";
import { csvHref, curlOf, getUsage, queryName, type Query } from "../api/usage";
import type { Key, Row } from "../api/types";
import { exactText, measureOf, shortText } from "../api/measures";
import { fromNow } from "../format/time";
import { CreateKey, KeyActions } from "../parts/key-actions";
import { Panel } from "../parts/panel";
import { useData } from "../state/data";
import { login } from "../state/login";
import { hrefOf, onLink, type Filter } from "../state/place";
import { minute, span } from "../state/span";

const SHOWN = 100;
const COLUMNS = ["cost_nanos", "requests", "errors", "denied"];

/** Narrow panels leave out what the entry's own page has. */
function numberClass(name: string): string {
  return name === "errors" || name === "denied" ? "num least" : "num";
}

/** Of one account, or of all that the login may see. */
export function Keys({ account, lazy = false }: { account?: string; lazy?: boolean }) {
  const [text, setText] = useState("");
  const [limit, setLimit] = useState(SHOWN);
  const [creating, setCreating] = useState(false);
  const scope: Filter[] = account ? [["account", account]] : [];
  const loaded = useData(`keys ${account ?? ""}`, (signal) => getAll<Key>("keys", scope, signal), false);
  const query: Query = {
    span: span.value,
    filters: scope,
    measures: [...COLUMNS, "last_at"],
    groupBy: ["key"],
    sort: "-cost_nanos",
    limit: 50_000,
  };
  const usage = useData(queryName(query), (signal) => getUsage(query, signal));
  const used = new Map<string, Row>(usage.data?.rows.map((row) => [String(row.key), row]));
  const order = new Map([...used.keys()].map((id, i) => [id, i]));
  const wanted = text.trim().toLowerCase();
  const found = (loaded.data?.items ?? [])
    .filter(
      (key) =>
        !wanted ||
        [key.id, key.name, key.prefix, key.account, key.project ?? ""].some((each) =>
          each.toLowerCase().includes(wanted),
        ),
    )
    .sort((a, b) => (order.get(a.id) ?? 1e9) - (order.get(b.id) ?? 1e9));
  const tools = (
    <>
      <input
        type="search"
        class="search"
        data-search={lazy ? undefined : true}
        placeholder="Search keys"
        aria-label="Search keys"
        value={text}
        onInput={(event) => setText(event.currentTarget.value)}
      />
      <button type="button" class="button primary" onClick={() => setCreating(true)}>
        Create key
      </button>
    </>
  );
  const everywhere = !account && login.value?.role === "operator";
  return (
    <Panel
      title="Keys"
      note={loaded.data && `${found.length} of ${loaded.data.items.length}${loaded.data.more ? "+" : ""}`}
      loaded={loaded}
      tools={tools}
      csv={csvHref(query)}
      curl={curlOf("keys", scope)}
      empty={
        loaded.data !== undefined &&
        found.length === 0 &&
        (wanted ? `No key matches “${text}”.` : "There is no key yet.")
      }
    >
      <div class="scroll">
        <table class="list">
          <caption class="sr">Keys with their use in {span.value.words}</caption>
          <thead>
            <tr>
              <th scope="col">Key</th>
              {everywhere && <th scope="col">Account</th>}
              <th scope="col">Project</th>
              <th scope="col">State</th>
              {COLUMNS.map((name) => (
                <th key={name} scope="col" class={numberClass(name)}>
                  {measureOf(name).words}
                </th>
              ))}
              <th scope="col">Last use</th>
              <th scope="col">
                <span class="sr">Actions</span>
              </th>
            </tr>
          </thead>
          <tbody>
            {found.slice(0, limit).map((key) => (
              <KeyRow
                key={`${key.account}/${key.id}`}
                entry={key}
                row={used.get(key.id)}
                everywhere={everywhere}
                onChange={loaded.reload}
              />
            ))}
          </tbody>
        </table>
      </div>
      {found.length > limit && (
        <button type="button" class="button more" onClick={() => setLimit(limit + 400)}>
          Show more
        </button>
      )}
      {creating && (
        <CreateKey
          account={account ?? login.value?.account ?? null}
          onClose={() => {
            setCreating(false);
            loaded.reload();
          }}
        />
      )}
    </Panel>
  );
}

function KeyRow({
  entry,
  row,
  everywhere,
  onChange,
}: {
  entry: Key;
  row: Row | undefined;
  everywhere: boolean;
  onChange: () => void;
}) {
  const target = { view: "key", id: entry.id, filters: [] } as const;
  const lastMs = Math.max(Date.parse(entry.last_used_at ?? "") || 0, Date.parse(String(row?.last_at ?? "")) || 0);
  const ends =
    entry.expires_at && entry.state === "active"
      ? ` · expires ${fromNow(Date.parse(entry.expires_at), minute.value)}`
      : "";
  return (
    <tr class={entry.state === "active" ? undefined : "faded"}>
      <th scope="row">
        {entry.role === "management" ? (
          <span>{entry.id}</span>
        ) : (
          <a class="row" data-row href={hrefOf(target)} onClick={onLink(target)}>
            {entry.name || entry.id}
          </a>
        )}
        <span class="note">
          {" "}
          {entry.name && entry.id} <code>{entry.prefix}</code>
          {entry.role === "management" && " management"}
        </span>
      </th>
      {everywhere && <td>{entry.account}</td>}
      <td>{entry.project ?? "–"}</td>
      <td>
        <span class={`state ${entry.state}`}>{entry.state}</span>
        <span class="note">
          {ends}
          {entry.replaced_by && ` · replaced by ${entry.replaced_by}`}
        </span>
      </td>
      {COLUMNS.map((name) => (
        <td key={name} class={numberClass(name)} title={exactText(row?.[name], measureOf(name).unit)}>
          {row ? shortText(row[name], measureOf(name).unit) : "–"}
        </td>
      ))}
      <td class="when">{lastMs ? fromNow(lastMs, minute.value) : "–"}</td>
      <td class="actions">
        <KeyActions entry={entry} onChange={onChange} />
      </td>
    </tr>
  );
}
