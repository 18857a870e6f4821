/** First of all: what is left of every budget, limit and balance, and when it resets. */
import { getJson } from "../api/client";
import { curlOf } from "../api/usage";
import type { Balance, Key, KeyState, Page } from "../api/types";
import { moneyText, nanosOf } from "../format/money";
import { fromNow } from "../format/time";
import { useData } from "../state/data";
import { minute } from "../state/span";
import { GaugeBar, gaugeOf, pressure, type Gauge } from "./gauge";
import { Panel } from "./panel";

/** Keys whose states are asked for on an account's page. */
const KEYS_MAX = 8;

export function LeftOfKey({ id }: { id: string }) {
  const path = `keys/${encodeURIComponent(id)}/state`;
  const loaded = useData(path, (signal) => getJson<KeyState>(path, [], signal));
  const state = loaded.data;
  const gauges = state ? gaugesOf(state) : [];
  const fits = fittingWords(gauges);
  const ends = state?.expires_at ? `expires ${fromNow(Date.parse(state.expires_at), minute.value)}` : "";
  const note = state && wordsOf(state, ends);
  return (
    <Panel
      title="What is left"
      note={note}
      loaded={loaded}
      curl={curlOf(path, [])}
      class="left"
      empty={state !== undefined && gauges.length === 0 && nothingWords(state)}
    >
      <ul class="gauges">
        {gauges.map((gauge) => (
          <GaugeBar key={gauge.kind + gauge.name} gauge={gauge} />
        ))}
      </ul>
      {fits && <p class="note idle">{fits}</p>}
    </Panel>
  );
}

function wordsOf(state: KeyState, ends: string): string {
  const plan = state.plan && `plan ${state.plan}`;
  return [state.state === "active" ? "" : state.state, plan, ends].filter(Boolean).join(" · ");
}

/** The largest request that would be admitted now, by money; null when no money bounds it. */
function fittingWords(gauges: Gauge[]): string | null {
  const bounds = gauges.filter((each) => each.unit === "nanos" && each.remaining !== null);
  const tightest = bounds.reduce<Gauge | null>(
    (least, each) => (least === null || (each.remaining ?? 0n) < (least.remaining ?? 0n) ? each : least),
    null,
  );
  if (tightest === null) return null;
  const room = tightest.remaining ?? 0n;
  return room > 0n
    ? `The largest request that fits now costs ${moneyText(room)}, bound by ${tightest.name}.`
    : `No request that costs anything fits now: ${tightest.name} is used up.`;
}

function nothingWords(state: KeyState): string {
  return state.state === "active"
    ? "Nothing bounds this key: it has no budget, no rate limit and draws on no credit."
    : `This key is ${state.state}: it admits no request, so nothing is counted for it.`;
}

function mostPressing(gauges: Gauge[]): Gauge[] {
  return [...gauges].sort((a, b) => pressure(b) - pressure(a));
}

function gaugesOf(state: KeyState): Gauge[] {
  return [
    ...(state.credit ? [gaugeOf({ ...state.credit, name: "Credit" }, "balance")] : []),
    ...mostPressing(state.budgets.map((each) => gaugeOf(each, "budget"))),
    ...mostPressing(state.limits.map((each) => gaugeOf(each, each.resets_at ? "rate limit" : "at once"))),
  ];
}

interface AccountLeft {
  balance: Balance;
  states: KeyState[];
  keys: number;
}

export function LeftOfAccount({ account }: { account: string }) {
  const path = `accounts/${encodeURIComponent(account)}/balance`;
  const loaded = useData(`left ${account}`, (signal) => leftOf(account, path, signal));
  const found = loaded.data;
  const gauges = found ? accountGauges(found) : [];
  const idle = found
    ? found.states.flatMap((state) => state.limits).filter((limit) => Number(limit.used ?? 0) === 0).length
    : 0;
  const more = found && found.keys > found.states.length ? `of ${found.states.length} of ${found.keys} keys` : "";
  return (
    <Panel
      title="What is left"
      note={more}
      loaded={loaded}
      curl={curlOf(path, [])}
      class="left"
      empty={
        found !== undefined &&
        gauges.length === 0 &&
        "Nothing bounds this account: it has no credit, and no budget or limit is in use."
      }
    >
      <ul class="gauges">
        {gauges.map((gauge, i) => (
          <GaugeBar key={i} gauge={gauge} />
        ))}
      </ul>
      {idle > 0 && <p class="note idle">{idle} rate limits of its keys have nothing used just now.</p>}
      {found && <Grants balance={found.balance} />}
    </Panel>
  );
}

async function leftOf(account: string, path: string, signal: AbortSignal): Promise<AccountLeft> {
  const [balance, page] = await Promise.all([
    getJson<Balance>(path, [], signal),
    getJson<Page<Key>>(
      "keys",
      [
        ["account", account],
        ["limit", "200"],
      ],
      signal,
    ),
  ]);
  const active = page.items.filter((key) => key.role === "consumption" && key.state === "active");
  const asked = active
    .slice(0, KEYS_MAX)
    .map((key) => getJson<KeyState>(`keys/${encodeURIComponent(key.id)}/state`, [], signal));
  return { balance, states: await Promise.all(asked), keys: active.length };
}

function accountGauges({ balance, states }: AccountLeft): Gauge[] {
  const gauges: Gauge[] = [];
  const granted = balance.grants
    .filter((each) => !each.expired)
    .reduce((sum, each) => sum + BigInt(each.amount_nanos), 0n);
  if (granted > 0n || balance.balance_nanos !== "0") {
    const available = nanosOf(balance.available_nanos) ?? 0n;
    gauges.push({
      name: "Credit",
      kind: "balance",
      unit: "nanos",
      allowed: granted,
      used: granted - available,
      remaining: available,
      resetsAt: null,
      counts: balance.held_nanos === "0" ? "" : `${moneyText(BigInt(balance.held_nanos))} held by running requests`,
    });
  }
  // A budget that several keys share is one bar; what counts each key apart names its key.
  const budgets = new Map<string, { gauge: Gauge; keys: string[] }>();
  for (const state of states) {
    for (const budget of state.budgets) {
      const name = JSON.stringify(budget) + (budget.name.includes("/") ? state.key_id : "");
      const known = budgets.get(name);
      if (known) known.keys.push(state.key_id);
      else budgets.set(name, { gauge: gaugeOf(budget, "budget"), keys: [state.key_id] });
    }
  }
  const shared = [...budgets.values()].map(({ gauge, keys }) => ({
    ...gauge,
    counts: gauge.counts || (keys.length < states.length ? keys.join(", ") : ""),
  }));
  // A limit of which nothing is used presses nobody: the key's own page has it.
  const limits = states.flatMap((state) =>
    state.limits.map((limit) => ({
      ...gaugeOf(limit, limit.resets_at ? "rate limit" : "at once"),
      counts: state.key_id,
    })),
  );
  return [
    ...gauges,
    ...mostPressing(shared),
    ...mostPressing(limits.filter((each) => each.used !== null && each.used > 0n)),
  ];
}

function Grants({ balance }: { balance: Balance }) {
  if (balance.grants.length === 0) return null;
  return (
    <details class="data">
      <summary>{balance.grants.length} grants, in the order in which they are spent</summary>
      <table>
        <caption class="sr">Grants</caption>
        <thead>
          <tr>
            <th scope="col">Grant</th>
            <th scope="col" class="num">
              Left
            </th>
            <th scope="col" class="num">
              Of
            </th>
            <th scope="col">Ends</th>
          </tr>
        </thead>
        <tbody>
          {balance.grants.map((grant) => (
            <tr key={grant.id}>
              <th scope="row">{grant.id}</th>
              <td class="num">{moneyText(BigInt(grant.remaining_nanos))}</td>
              <td class="num">{moneyText(BigInt(grant.amount_nanos))}</td>
              <td>
                {grant.revoked_at
                  ? "revoked"
                  : grant.expired
                    ? "expired"
                    : grant.expires_at
                      ? fromNow(Date.parse(grant.expires_at), minute.value)
                      : "never"}
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </details>
  );
}
