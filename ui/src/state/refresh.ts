/** Live refresh: a tick while the page is visible, none while it is hidden. A tick asks again with the ETag. */
import { signal } from "@preact/signals";
import { tick } from "./span";

export const REFRESH_S = 15;
/** Rises when everything shown must be asked for again. */
export const refreshes = signal(0);
export const online = signal(navigator.onLine);
/** When something was answered last, ms. */
export const answeredAt = signal(0);

export function refresh(): void {
  tick();
  refreshes.value += 1;
}

export function watchRefresh(): void {
  let last = Date.now();
  const due = (): void => {
    if (document.hidden || !navigator.onLine) return;
    last = Date.now();
    refresh();
  };
  setInterval(due, REFRESH_S * 1000);
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && Date.now() - last > REFRESH_S * 1000) due();
  });
  addEventListener("online", () => {
    online.value = true;
    due();
  });
  addEventListener("offline", () => {
    online.value = false;
  });
}
