/** Headline numbers of the span as tabs of one chart; errors and latency beside it. */
import { csvHref, curlOf, getUsage, queryName, usageParams, type Query } from "../api/usage";
import type { Usage } from "../api/types";
import { useData } from "../state/data";
import { hrefOf, onLink, place, type Filter } from "../state/place";
import { minute, span as pageSpan, spanBefore, type Span } from "../state/span";
import type { Headline } from "./headline";
import { Panel } from "./panel";
import { Tile } from "./tile";
import { ErrorChart, LatencyChart, MainChart } from "./trend-charts";

interface TrendsProps {
  headlines: readonly Headline[];
  measures: readonly string[];
  filters: readonly Filter[];
}

export function Trends({ headlines, measures, filters }: TrendsProps) {
  const span = pageSpan.value;
  const before = spanBefore(span, place.value.range, minute.value);
  const asked = [...new Set([...measures, "errors", "denied", "latency_ms_p50", "latency_ms_p95"])];
  const query: Query = { span, filters, measures: asked, series: true, limit: 5000 };
  const earlier: Query = { ...query, span: before };
  const loaded = useData(queryName(query), (signal) => getUsage(query, signal));
  const compared = useData(queryName(earlier), (signal) => getUsage(earlier, signal));
  const chosen = headlines.find((each) => each.name === place.value.options.measure) ?? headlines[0];
  const usage = loaded.data;
  const empty = usage?.rows.length === 0 && "Nothing was recorded in this span.";
  const requests = { view: "requests", filters } as const;
  if (!chosen) return null;
  return (
    <div class="trends">
      <ul class={`tiles of-${headlines.length}`}>
        {headlines.map((each) => (
          <Tile key={each.name} headline={each} usage={usage} before={compared.data} span={span} on={each === chosen} />
        ))}
      </ul>
      <div class="trend-charts">
        <Panel
          title={`${chosen.words} over time`}
          note={noteOf(span, usage)}
          tools={
            <a class="tool" href={hrefOf(requests)} onClick={onLink(requests)}>
              Requests
            </a>
          }
          loaded={loaded}
          csv={csvHref(query)}
          class="wide"
          curl={curlOf("usage", usageParams(query))}
          empty={empty}
        >
          {usage && (
            <MainChart
              headline={chosen}
              usage={usage}
              before={place.value.compare ? compared.data : undefined}
              span={span}
              earlier={before}
              changed={compared.data}
            />
          )}
        </Panel>
        <Panel title="Errors and refusals" loaded={loaded} empty={empty}>
          {usage && <ErrorChart usage={usage} span={span} />}
        </Panel>
        <Panel title="Latency" loaded={loaded} empty={empty}>
          {usage && <LatencyChart usage={usage} span={span} />}
        </Panel>
      </div>
    </div>
  );
}

/** The span, and what the answer says that it lacks. */
function noteOf(span: Span, usage: Usage | undefined): string {
  const lacks =
    !usage || usage.complete
      ? ""
      : usage.lacks_detail
        ? `single events before ${usage.detail_from ?? ""} have expired: the numbers lack them`
        : `some requests are still on their way, the oldest for ${usage.behind_s} s`;
  return [span.words, span.open && "still open", lacks].filter(Boolean).join(" · ");
}
