/** The frame: navigation, the one range and filter set, the view, keys of the keyboard. */
import { useEffect, useState } from "preact/hooks";
import { formatIn } from "./format/time";
import { answeredAt, online, refresh } from "./state/refresh";
import { FilterChips, FilterDialog } from "./parts/filters";
import { Help } from "./parts/help";
import { Logo } from "./parts/logo";
import { RangeButton, RangeDialog } from "./parts/range";
import { login } from "./state/login";
import { theme, type Theme } from "./state/preferences";
import { go, hrefOf, onLink, place, zone, type View } from "./state/place";
import { moveRow, watchKeys, type Shortcut } from "./state/shortcuts";
import { Shown, titleOf } from "./views/shown";
import { logOut } from "./views/login";

interface Link {
  view: View;
  words: string;
  key?: string;
}

/** What each role may open. */
function linksOf(role: string | undefined): Link[] {
  const both: Link[] = [
    { view: "explore", words: "Explore", key: "e" },
    { view: "requests", words: "Requests", key: "r" },
  ];
  if (role === "operator") {
    return [
      { view: "overview", words: "Overview", key: "o" },
      { view: "accounts", words: "Accounts", key: "a" },
      { view: "keys", words: "Keys", key: "k" },
      ...both,
      { view: "plans", words: "Plans" },
      { view: "prices", words: "Prices" },
      { view: "webhooks", words: "Webhooks" },
      { view: "audit", words: "Audit log" },
    ];
  }
  if (role === "management") {
    return [
      { view: "account", words: "Account", key: "o" },
      { view: "keys", words: "Keys", key: "k" },
      ...both,
      { view: "webhooks", words: "Webhooks" },
      { view: "audit", words: "Audit log" },
    ];
  }
  return [{ view: "key", words: "My key", key: "o" }, ...both];
}

type Open = "range" | "filter" | "help" | null;

export function App() {
  const [open, setOpen] = useState<Open>(null);
  const links = linksOf(login.value?.role);
  const at = shownView(place.value.view, links);
  const shortcuts = shortcutsOf(links, setOpen);
  useEffect(() => watchKeys(() => [...shortcutsOf(linksOf(login.value?.role), setOpen), ESCAPE]), []);
  const title = titleOf(at);
  useEffect(() => {
    document.title = `${title} · Tollkeeper`;
  }, [title]);
  const ranged = !["plans", "prices", "webhooks", "audit"].includes(at);
  const filtered = ranged && at !== "accounts" && at !== "keys";
  return (
    <div class="frame">
      <a
        class="skip"
        href="#main"
        onClick={(event) => {
          event.preventDefault();
          document.getElementById("main")?.focus();
        }}
      >
        Skip to the numbers
      </a>
      <header class="side">
        <a class="brand" href={hrefOf({ view: "home", filters: [] })} onClick={onLink({ view: "home", filters: [] })}>
          <Logo /> Tollkeeper
        </a>
        <nav aria-label="Pages">
          <ul>
            {links.map(({ view, words }) => (
              <li key={view}>
                <a
                  href={hrefOf({ view })}
                  onClick={onLink({ view, id: "" })}
                  aria-current={view === at || parentOf(at) === view ? "page" : undefined}
                >
                  {words}
                </a>
              </li>
            ))}
          </ul>
        </nav>
        <Account onHelp={() => setOpen("help")} />
      </header>
      <main id="main" tabIndex={-1}>
        <div class="top">
          <h1>{title}</h1>
          {ranged && (
            <div class="top-tools">
              {filtered && at !== "requests" && (
                <label class="check compare">
                  <input
                    type="checkbox"
                    checked={place.value.compare}
                    onChange={(event) => go({ compare: event.currentTarget.checked })}
                  />{" "}
                  Compare
                </label>
              )}
              <RangeButton onOpen={() => setOpen("range")} />
            </div>
          )}
          {filtered && <FilterChips onAdd={() => setOpen("filter")} />}
        </div>
        {!online.value && (
          <p class="problem" role="status">
            <strong>This device is offline.</strong> The numbers shown are of before; they are refreshed once it is
            online.
          </p>
        )}
        <Shown view={at} />
      </main>
      {open === "range" && <RangeDialog onClose={() => setOpen(null)} />}
      {open === "filter" && <FilterDialog onClose={() => setOpen(null)} />}
      {open === "help" && <Help shortcuts={shortcuts} onClose={() => setOpen(null)} />}
    </div>
  );
}

/** The first page of the role stands for `home`, and for what the role may not open. */
function shownView(view: View, links: Link[]): View {
  const operator = login.value?.role === "operator";
  const below = operator ? ["account", "key"] : login.value?.role === "management" ? ["key"] : [];
  return links.some((each) => each.view === view) || below.includes(view) ? view : (links[0]?.view ?? "key");
}

function parentOf(view: View): View | null {
  if (login.value?.role === "operator") return view === "account" ? "accounts" : view === "key" ? "keys" : null;
  return view === "key" && login.value?.role === "management" ? "keys" : null;
}

function shortcutsOf(links: Link[], setOpen: (open: Open) => void): Shortcut[] {
  return [
    { keys: "?", what: "These keys", run: () => setOpen("help") },
    { keys: "/", what: "Search, or add a filter", run: () => focusSearch() || setOpen("filter") },
    ...links
      .filter((each) => each.key)
      .map(({ view, words, key }) => ({ keys: `g ${key}`, what: `Go to ${words}`, run: () => go({ view, id: "" }) })),
    { keys: "t", what: "Range and time zone", run: () => setOpen("range") },
    { keys: "c", what: "Compare with the span before", run: () => go({ compare: !place.value.compare }) },
    { keys: "f", what: "Add a filter", run: () => setOpen("filter") },
    { keys: "x", what: "Take all filters away", run: () => go({ filters: [] }) },
    { keys: "j", what: "Next row", run: () => moveRow(1) },
    { keys: "k", what: "Row before", run: () => moveRow(-1) },
    {
      keys: "d",
      what: "CSV of the first panel",
      run: () => document.querySelector<HTMLAnchorElement>("a[download]")?.click(),
    },
  ];
}

const ESCAPE: Shortcut = {
  keys: "Escape",
  what: "Take the last filter away",
  run: () => go({ filters: place.value.filters.slice(0, -1) }),
};

function focusSearch(): boolean {
  const field = document.querySelector<HTMLInputElement>("[data-search]");
  field?.focus();
  return field !== null;
}

const THEMES: Record<Theme, Theme> = { system: "light", light: "dark", dark: "system" };

function Account({ onHelp }: { onHelp: () => void }) {
  const [failure, setFailure] = useState("");
  const who = login.value;
  if (!who) return null;
  const name = who.key ?? who.account ?? "operator";
  return (
    <div class="who">
      <p>
        <b title={name}>{name}</b> <span class="note">{who.role === "consumption" ? who.account : who.role}</span>
      </p>
      <p class="who-tools">
        <button
          type="button"
          class="tool"
          onClick={() => {
            theme.value = THEMES[theme.value];
          }}
          aria-label={`Theme: ${theme.value}. Change it`}
          title="Theme"
        >
          ◐ {theme.value}
        </button>
        <button type="button" class="tool refresh" onClick={refresh} aria-label="Refresh all">
          ↻
        </button>
        <button type="button" class="tool" onClick={onHelp} aria-label="Keyboard keys">
          ?
        </button>
        <button
          type="button"
          class="tool"
          onClick={() =>
            void logOut().catch((error: unknown) => setFailure(error instanceof Error ? error.message : String(error)))
          }
        >
          Log out
        </button>
      </p>
      <p class="note updated">
        {answeredAt.value > 0 && `Updated ${formatIn(zone.value, { timeStyle: "medium" }).format(answeredAt.value)}`}
      </p>
      {failure && (
        <p class="problem" role="alert">
          Not logged out: {failure}
        </p>
      )}
    </div>
  );
}
