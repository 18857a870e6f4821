/** The view of the place, and its title. */
import type { ComponentChildren } from "preact";
import { getJson } from "../api/client";
import type { Account, Key } from "../api/types";
import { Lazy } from "../parts/panel";
import { KeyActions } from "../parts/key-actions";
import { useData } from "../state/data";
import { login } from "../state/login";
import { hrefOf, onLink, place, type Filter, type View } from "../state/place";
import { Accounts } from "./accounts";
import { Audit } from "./audit";
import { Customer } from "./customer";
import { Explore } from "./explore";
import { Keys } from "./keys";
import { Overview } from "./overview";
import { Requests } from "./requests";
import { Plans, Prices, Webhooks } from "./setup";

const TITLES: Record<View, string> = {
  home: "Overview",
  overview: "Overview",
  account: "Account",
  key: "Key",
  accounts: "Accounts",
  keys: "Keys",
  explore: "Explore",
  requests: "Requests",
  plans: "Plans",
  prices: "Prices",
  webhooks: "Webhooks",
  audit: "Audit log",
};

export function titleOf(view: View): string {
  if (view === "account") return place.value.id || login.value?.account || TITLES.account;
  if (view === "key") return place.value.id || login.value?.key || TITLES.key;
  return TITLES[view];
}

export function Shown({ view }: { view: View }) {
  switch (view) {
    case "account":
      return <AccountPage key={place.value.id} />;
    case "key":
      return <KeyPage key={place.value.id} />;
    case "accounts":
      return <Accounts />;
    case "keys":
      return <Keys account={login.value?.account ?? undefined} />;
    case "explore":
      return <Explore />;
    case "requests":
      return <Requests />;
    case "plans":
      return <Plans />;
    case "prices":
      return <Prices />;
    case "webhooks":
      return <Webhooks />;
    case "audit":
      return <Audit />;
    default:
      return <Overview />;
  }
}

function AccountPage() {
  const operator = login.value?.role === "operator";
  const account = operator ? place.value.id : (login.value?.account ?? "");
  const scope: Filter[] = operator ? [["account", account]] : [];
  const entry = useData(
    operator ? `account ${account}` : null,
    (signal) => getJson<Account>(`accounts/${encodeURIComponent(account)}`, [], signal),
    false,
  );
  return (
    <>
      {operator && (
        <Crumbs>
          <a href={hrefOf({ view: "accounts" })} onClick={onLink({ view: "accounts" })}>
            Accounts
          </a>
          {entry.data && <span>{entry.data.name}</span>}
          {entry.data && (
            <span class="note">
              {entry.data.plan && `plan ${entry.data.plan} · `}
              {entry.data.active ? "active" : "inactive"}
            </span>
          )}
        </Crumbs>
      )}
      <Customer account={account} scope={scope} />
      {operator && <Lazy>{() => <Keys account={account} lazy />}</Lazy>}
    </>
  );
}

function KeyPage() {
  const own = login.value?.role === "consumption";
  const id = own ? (login.value?.key ?? "") : place.value.id;
  const entry = useData(
    own ? null : `key ${id}`,
    (signal) => getJson<Key>(`keys/${encodeURIComponent(id)}`, [], signal),
    false,
  );
  const above = entry.data && login.value?.role === "operator" ? entry.data.account : null;
  return (
    <>
      {!own && (
        <Crumbs>
          {above ? (
            <a href={hrefOf({ view: "account", id: above })} onClick={onLink({ view: "account", id: above })}>
              {above}
            </a>
          ) : (
            <a href={hrefOf({ view: "keys" })} onClick={onLink({ view: "keys" })}>
              Keys
            </a>
          )}
          {entry.data && (
            <span class="note">
              <code>{entry.data.prefix}</code> {entry.data.state}
            </span>
          )}
          {entry.data && (
            <span class="actions">
              <KeyActions entry={entry.data} onChange={entry.reload} />
            </span>
          )}
        </Crumbs>
      )}
      <Customer keyId={id} scope={own ? [] : [["key", id]]} />
    </>
  );
}

function Crumbs({ children }: { children: ComponentChildren }) {
  return (
    <nav class="crumbs" aria-label="Where this is">
      {children}
    </nav>
  );
}
