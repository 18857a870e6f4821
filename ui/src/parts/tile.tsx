/** A headline of the span, compared with the span before; pressed, it is what the chart shows. */
import { useMemo } from "preact/hooks";
import { coordinate, exactText, shortText } from "../api/measures";
import { alignedRows } from "../api/usage";
import type { Cell, Usage } from "../api/types";
import { changeText } from "../format/number";
import { setOption } from "../state/place";
import type { Span } from "../state/span";
import { openIndex } from "./chart";
import { comparable, type Headline } from "./headline";
import { Sparkline } from "./sparkline";

interface TileProps {
  headline: Headline;
  usage: Usage | undefined;
  before: Usage | undefined;
  span: Span;
  on: boolean;
}

export function Tile({ headline, usage, before, span, on }: TileProps) {
  const { of, unit, words } = headline;
  const now = usage ? of(usage.totals) : null;
  const was = before ? of(before.totals) : null;
  const values = useMemo(() => {
    if (!usage) return [];
    const { times, rows } = alignedRows(usage, span);
    return rows
      .slice(0, span.open ? openIndex(times) + 1 : rows.length)
      .map((row) => (row ? coordinate(of(row), unit) : 0));
  }, [usage, span, headline.name]);
  const change = usage && before ? changeText(comparable(now), comparable(was)) : null;
  return (
    <li>
      <button type="button" class="tile" aria-pressed={on} onClick={() => setOption("measure", headline.name)}>
        <span class="tile-name">{words}</span>
        <b class="tile-value" title={exactText(now, unit)}>
          {usage ? shortText(now, unit) : " "}
        </b>
        <span class={`tile-change ${tone(headline, now, was)}`}>
          {change === null ? (
            " "
          ) : change === "new" ? (
            "none before"
          ) : (
            <>
              {change} <span class="was">from {shortText(was, unit)}</span>
            </>
          )}
        </span>
        <Sparkline values={values} />
      </button>
    </li>
  );
}

function tone({ more }: Headline, now: Cell | bigint, was: Cell | bigint): string {
  const [a, b] = [comparable(now), comparable(was)];
  if (more === "neither" || a === b || was === null) return "";
  return a > b === (more === "good") ? "up" : "down";
}
