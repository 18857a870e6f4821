/** The audit log: who changed what, when; old and new values. Read only, newest first. */
import { useState } from "preact/hooks";
import { getJson, Problem, type Params } from "../api/client";
import type { AuditItem, Page } from "../api/types";
import { curlOf } from "../api/usage";
import { instantText } from "../format/time";
import { Panel, ProblemNote } from "../parts/panel";
import { useData } from "../state/data";
import { zone } from "../state/place";
import { fieldText } from "../parts/fields";

const PAGE: Params = [["limit", "50"]];

export function Audit() {
  const loaded = useData("audit", (signal) => getJson<Page<AuditItem>>("audit", PAGE, signal));
  const [older, setOlder] = useState<Page<AuditItem> | null>(null);
  const [problem, setProblem] = useState<Problem | null>(null);
  const first = loaded.data;
  const next = older ? older.next : (first?.next ?? null);
  const items = [
    ...new Map([...(first?.items ?? []), ...(older?.items ?? [])].map((item) => [item.seq, item])).values(),
  ];
  const more = async (): Promise<void> => {
    try {
      const page = await getJson<Page<AuditItem>>("audit", [...PAGE, ["after", next ?? ""]]);
      setOlder({ items: [...(older?.items ?? []), ...page.items], next: page.next });
      setProblem(null);
    } catch (error) {
      setProblem(error instanceof Problem ? error : new Problem(0, String(error)));
    }
  };
  return (
    <Panel
      title="Audit log"
      loaded={loaded}
      curl={curlOf("audit", PAGE)}
      empty={first !== undefined && items.length === 0 && "Nothing was changed yet."}
    >
      <div class="scroll">
        <table class="list audit">
          <caption class="sr">Changes, the newest first</caption>
          <thead>
            <tr>
              <th scope="col">Time ({zone.value})</th>
              <th scope="col">Who</th>
              <th scope="col">What</th>
              <th scope="col">Fields</th>
            </tr>
          </thead>
          <tbody>
            {items.map((item) => (
              <tr key={item.seq}>
                <th scope="row" class="when">
                  {instantText(Date.parse(item.at), zone.value, true)}
                </th>
                <td>{item.actor}</td>
                <td>
                  {item.kind} <b>{item.id}</b> {item.action}
                  {item.account && <span class="note"> {item.account}</span>}
                </td>
                <td>
                  <Fields item={item} />
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {problem && <ProblemNote problem={problem} />}
      {next && (
        <button type="button" class="button more" onClick={() => void more()}>
          Older changes
        </button>
      )}
    </Panel>
  );
}

function Fields({ item: { fields, unit } }: { item: AuditItem }) {
  return (
    <ul class="plain changes">
      {Object.entries(fields).map(([name, [before, now]]) => (
        <li key={name}>
          <code>{name}</code>{" "}
          {before !== null && (
            <>
              <del>{fieldText(name, before, unit)}</del> →{" "}
            </>
          )}
          {now === null ? <em>none</em> : <ins>{fieldText(name, now, unit)}</ins>}
        </li>
      ))}
    </ul>
  );
}
