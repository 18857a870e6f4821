/** Keyboard keys: never with a modifier, never while typing, and they can be turned off (WCAG 2.1.4). */
import { keyboard } from "./preferences";

export interface Shortcut {
  keys: string;
  what: string;
  /** Not where the caller may not go. */
  run: () => void;
}

/** `g` waits so long for its second key. */
const SECOND_KEY_MS = 1200;

export function watchKeys(shortcuts: () => readonly Shortcut[]): () => void {
  let first = "";
  let at = 0;
  const listen = (event: KeyboardEvent): void => {
    if (keyboard.value === "off" || event.ctrlKey || event.altKey || event.metaKey || event.defaultPrevented) return;
    if (typing(event.target) || document.querySelector("dialog[open]")) return;
    const pressed = first && Date.now() - at < SECOND_KEY_MS ? `${first} ${event.key}` : event.key;
    first = "";
    if (pressed === "g") {
      first = "g";
      at = Date.now();
      return;
    }
    const found = shortcuts().find((each) => each.keys === pressed);
    if (!found) return;
    event.preventDefault();
    found.run();
  };
  addEventListener("keydown", listen);
  return () => removeEventListener("keydown", listen);
}

function typing(target: EventTarget | null): boolean {
  return (
    target instanceof HTMLElement &&
    (target.isContentEditable || ["INPUT", "SELECT", "TEXTAREA"].includes(target.tagName))
  );
}

/** Move the focus among the rows of all tables. */
export function moveRow(step: 1 | -1): void {
  const rows = [...document.querySelectorAll<HTMLElement>("[data-row]")].filter((row) => row.offsetParent !== null);
  const now = rows.indexOf(document.activeElement as HTMLElement);
  const next = rows[now < 0 ? (step > 0 ? 0 : rows.length - 1) : now + step];
  next?.focus();
  next?.scrollIntoView({ block: "nearest" });
}
