/** The one range of the page: presets, own dates, the time zone, and the comparison. */
import { useState } from "preact/hooks";
import { dateText, isZone, localParts } from "../format/time";
import { go, place } from "../state/place";
import { RANGES, span } from "../state/span";
import { Dialog } from "./dialog";

export function RangeButton({ onOpen }: { onOpen: () => void }) {
  return (
    <button type="button" class="button range" onClick={onOpen} aria-haspopup="dialog">
      <svg width="14" height="14" viewBox="0 0 16 16" aria-hidden="true">
        <path d="M2 4h12v10H2zM2 7h12M5 2v3M11 2v3" />
      </svg>
      {span.value.words}
      {place.value.zone !== "UTC" && <span class="note">{place.value.zone}</span>}
    </button>
  );
}

export function RangeDialog({ onClose }: { onClose: () => void }) {
  const now = span.value;
  const [from, setFrom] = useState(dayOf(now.fromMs));
  const [to, setTo] = useState(dayOf(now.toMs - 60_000));
  const [zone, setZone] = useState(place.value.zone);
  const here = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const own = (event: Event): void => {
    event.preventDefault();
    const end = new Date(`${to}T00:00:00Z`);
    go({ range: "", from, to: dateText(end.getUTCFullYear(), end.getUTCMonth() + 1, end.getUTCDate() + 1) });
    onClose();
  };
  return (
    <Dialog title="Range" onClose={onClose}>
      <div class="presets" role="group" aria-label="Presets">
        {RANGES.map(([range, words]) => (
          <button
            key={range}
            type="button"
            class="button"
            aria-pressed={place.value.range === range}
            onClick={() => {
              go({ range, from: "", to: "" });
              onClose();
            }}
          >
            {words}
          </button>
        ))}
      </div>
      <form class="form inline" onSubmit={own}>
        <label>
          From
          <input type="date" value={from} max={to} required onInput={(event) => setFrom(event.currentTarget.value)} />
        </label>
        <label>
          To, inclusive
          <input type="date" value={to} min={from} required onInput={(event) => setTo(event.currentTarget.value)} />
        </label>
        <button type="submit" class="button primary">
          Show
        </button>
      </form>
      <form
        class="form inline"
        onSubmit={(event) => {
          event.preventDefault();
          if (isZone(zone)) {
            go({ zone });
            onClose();
          }
        }}
      >
        <label>
          Time zone
          <input
            list="zones"
            value={zone}
            aria-invalid={!isZone(zone)}
            onInput={(event) => setZone(event.currentTarget.value)}
          />
          <datalist id="zones">
            {zones(here).map((name) => (
              <option key={name} value={name} />
            ))}
          </datalist>
        </label>
        <button type="submit" class="button" disabled={!isZone(zone)}>
          Use zone
        </button>
        <button
          type="button"
          class="button"
          onClick={() => {
            go({ zone: here });
            onClose();
          }}
        >
          Mine
        </button>
      </form>
      <label class="check">
        <input
          type="checkbox"
          checked={place.value.compare}
          onChange={(event) => go({ compare: event.currentTarget.checked })}
        />
        Draw the span before, too
      </label>
    </Dialog>
  );
}

function dayOf(ms: number): string {
  const { y, m, d } = localParts(ms, place.value.zone);
  return dateText(y, m, d);
}

function zones(here: string): string[] {
  const known =
    (Intl as unknown as { supportedValuesOf?: (what: string) => string[] }).supportedValuesOf?.("timeZone") ?? [];
  return [...new Set(["UTC", here, ...known])];
}
