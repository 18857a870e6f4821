/** Plans, prices, webhooks: read only. The declarative file stays the source of truth. */
import { useState } from "preact/hooks";
import { getJson, type Params } from "../api/client";
import { getAll } from "../api/catalog";
import { curlOf } from "../api/usage";
import type { Cell, Page } from "../api/types";
import { exactMoney, moneyText } from "../format/money";
import { countText } from "../format/number";
import { blank, fieldText } from "../parts/fields";
import { Panel } from "../parts/panel";
import { useData } from "../state/data";
import { login } from "../state/login";

interface PlanLimit {
  name: string;
  amount: number | string;
  window: string;
  unit: string;
  algorithm: string;
  per: string;
  match: string | null;
}
interface PlanBudget {
  name: string;
  amount: number | string;
  unit: string;
  period: string;
  per: string;
  match: string | null;
}
interface Plan {
  slug: string;
  name: string;
  price_nanos: string;
  layers: string[] | null;
  models: string[] | null;
  sellable: boolean;
  limits: PlanLimit[];
  budgets: PlanBudget[];
}

export function Plans() {
  const loaded = useData("plans", (signal) => getAll<Plan>("plans", [], signal), false);
  const plans = loaded.data?.items ?? [];
  return (
    <Panel
      title="Plans"
      note="read only: apply a file to change them"
      loaded={loaded}
      curl={curlOf("plans", [])}
      empty={loaded.data !== undefined && plans.length === 0 && "There is no plan. Apply a file with [[plans]]."}
    >
      <div class="cards">
        {plans.map((plan) => (
          <article key={plan.slug} class="card">
            <h3>
              {plan.name || plan.slug}{" "}
              <span class="note">
                {plan.slug}
                {!plan.sellable && " · not sold"}
              </span>
            </h3>
            <p class="big">
              {moneyText(BigInt(plan.price_nanos))} <span class="note">per period</span>
            </p>
            <ul class="plain">
              {plan.budgets.map((each) => (
                <li key={each.name}>
                  {amountWords(each.amount, each.unit)} per {each.period}{" "}
                  <span class="note">
                    {each.name}, per {each.per}
                    {each.match && `, ${each.match}`}
                  </span>
                </li>
              ))}
              {plan.limits.map((each) => (
                <li key={each.name}>
                  {amountWords(each.amount, each.unit)}{" "}
                  {each.algorithm === "concurrency" ? "at once" : `per ${each.window}`}{" "}
                  <span class="note">
                    {each.name}, per {each.per}
                    {each.match && `, ${each.match}`}
                  </span>
                </li>
              ))}
              {plan.layers && <li>Layers: {plan.layers.join(", ")}</li>}
              {plan.models && <li>Models: {plan.models.join(", ")}</li>}
            </ul>
          </article>
        ))}
      </div>
    </Panel>
  );
}

function amountWords(amount: number | string, unit: string): string {
  return unit === "nanos" ? moneyText(BigInt(amount)) : `${countText(Number(amount))} ${unit.replace("quantity.", "")}`;
}

interface Listed {
  name: string;
  model: string | null;
  seller: string;
  version: string;
  rates: Record<string, string>;
}
const RATES = ["prompt_tokens", "cached_prompt_tokens", "completion_tokens", "reasoning_tokens"];

export function Prices() {
  const [text, setText] = useState("");
  const own = useData("prices", (signal) => getAll<Record<string, Cell>>("prices", [], signal), false);
  const markups = useData("markups", (signal) => getAll<Record<string, Cell>>("markups", [], signal), false);
  const listed = useData("built-in", (signal) => getJson<Page<Listed>>("prices/built-in", [], signal), false);
  const wanted = text.trim().toLowerCase();
  const found = (listed.data?.items ?? []).filter((each) => !wanted || each.name.toLowerCase().includes(wanted));
  return (
    <>
      <Entries
        title="Own prices"
        loaded={own}
        items={own.data?.items}
        path="prices"
        empty="No price of your own: the built-in list is in force."
      />
      <Entries
        title="Mark-ups"
        loaded={markups}
        items={markups.data?.items}
        path="markups"
        empty="No mark-up: customers pay the provider’s price."
      />
      <Panel
        title="Built-in list"
        note={listed.data && `${found.length} of ${listed.data.items.length}, per million`}
        loaded={listed}
        curl={curlOf("prices/built-in", [])}
        tools={
          <input
            type="search"
            class="search"
            data-search
            placeholder="Search models"
            aria-label="Search models"
            value={text}
            onInput={(event) => setText(event.currentTarget.value)}
          />
        }
        empty={listed.data !== undefined && found.length === 0 && `No model matches “${text}”.`}
      >
        <div class="scroll">
          <table class="list">
            <caption class="sr">Prices of the built-in list, per million</caption>
            <thead>
              <tr>
                <th scope="col">Model</th>
                {RATES.map((name) => (
                  <th key={name} scope="col" class="num">
                    {name.replace("_tokens", "").replaceAll("_", " ")}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {found.slice(0, 200).map((each) => (
                <tr key={each.name}>
                  <th scope="row">
                    <span class="row" data-row tabIndex={-1}>
                      {each.name}
                    </span>
                  </th>
                  {RATES.map((name) => (
                    <td key={name} class="num">
                      {each.rates[name] === undefined ? "–" : exactMoney(BigInt(each.rates[name]))}
                    </td>
                  ))}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
        {found.length > 200 && <p class="note">The first 200 are shown: search for the others.</p>}
      </Panel>
    </>
  );
}

export function Webhooks() {
  const scope: Params = login.value?.account ? [["account", login.value.account]] : [];
  const loaded = useData("webhooks", (signal) => getAll<Record<string, Cell>>("webhooks", scope, signal), false);
  return (
    <Entries
      title="Webhooks"
      loaded={loaded}
      items={loaded.data?.items}
      path="webhooks"
      empty="No webhook: nobody is told when a budget runs low."
    />
  );
}

interface EntriesProps {
  title: string;
  loaded: ReturnType<typeof useData<unknown>>;
  items: Record<string, unknown>[] | undefined;
  path: string;
  empty: string;
}

/** A table of entries with the fields that any of them has. */
function Entries({ title, loaded, items = [], path, empty }: EntriesProps) {
  const fields = [...new Set(items.flatMap((each) => Object.keys(each).filter((name) => !blank(each[name]))))];
  return (
    <Panel
      title={title}
      note="read only: apply a file to change them"
      loaded={loaded}
      curl={curlOf(path, [])}
      empty={loaded.data !== undefined && items.length === 0 && empty}
    >
      <div class="scroll" tabIndex={0} role="group" aria-label={title}>
        <table class="list">
          <caption class="sr">{title}</caption>
          <thead>
            <tr>
              {fields.map((name) => (
                <th key={name} scope="col">
                  {name.replace(/_nanos\b/, "").replaceAll("_", " ")}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {items.map((each, i) => (
              <tr key={i}>
                {fields.map((name) => (
                  <td key={name}>{fieldText(name, each[name], String(each.unit ?? ""))}</td>
                ))}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </Panel>
  );
}
