/** Choices of this browser: theme, keyboard. Kept in localStorage; where it is barred they last for the visit. */
import { effect, signal } from "@preact/signals";

export type Theme = "system" | "light" | "dark";

export const theme = signal<Theme>(read("theme", ["system", "light", "dark"]) as Theme);
export const keyboard = signal<string>(read("keyboard", ["on", "off"]));
/** Changes when colours must be read again. */
export const colours = signal(0);

export function watchPreferences(): void {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  effect(() => {
    const shown = theme.value === "system" ? (dark.matches ? "dark" : "light") : theme.value;
    document.documentElement.dataset.theme = shown;
    colours.value = colours.peek() + 1;
    write("theme", theme.value);
  });
  effect(() => write("keyboard", keyboard.value));
  dark.addEventListener("change", () => {
    if (theme.value !== "system") return;
    document.documentElement.dataset.theme = dark.matches ? "dark" : "light";
    colours.value += 1;
  });
}

function read(name: string, allowed: string[]): string {
  let value: string | null = null;
  try {
    value = localStorage.getItem(`tollkeeper.${name}`);
  } catch {
    // Storage is barred by the browser's settings: the default holds.
  }
  return value && allowed.includes(value) ? value : (allowed[0] ?? "");
}

function write(name: string, value: string): void {
  try {
    localStorage.setItem(`tollkeeper.${name}`, value);
  } catch {
    // As above.
  }
}
