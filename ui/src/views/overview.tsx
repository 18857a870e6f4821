/** The operator's overview: money, who and what made it, refusals, errors, latency, proof. */
import { Breakdown } from "../parts/breakdown";
import { Lazy } from "../parts/panel";
import { Refused } from "../parts/refused";
import { headline, type Headline } from "../parts/headline";
import { Trends } from "../parts/trends";
import { hrefOf, place } from "../state/place";
import { span } from "../state/span";
import { useTagNames } from "../state/tags";
import { Pace } from "./pace";
import { Proof } from "./proof";

const MARGIN: Headline = {
  name: "margin",
  words: "Margin",
  unit: "money",
  more: "good",
  of: (row) => BigInt(row.cost_nanos ?? 0) - BigInt(row.provider_cost_nanos ?? 0),
};

const HEADLINES: readonly Headline[] = [
  headline("cost_nanos", "good", "Revenue"),
  headline("provider_cost_nanos"),
  MARGIN,
  headline("requests"),
  headline("tokens"),
  headline("errors", "bad"),
  headline("denied", "bad"),
  headline("latency_ms_p95", "bad"),
];
const MEASURES = ["cost_nanos", "provider_cost_nanos", "requests", "tokens", "errors", "denied", "latency_ms_p95"];

export function Overview() {
  const { filters } = place.value;
  const chosen = place.value.options.measure ?? "cost_nanos";
  const measure = MEASURES.includes(chosen) ? chosen : "cost_nanos";
  const tags = useTagNames();
  return (
    <>
      <Pace filters={filters} />
      <Trends headlines={HEADLINES} measures={MEASURES} filters={filters} />
      <div class="grid">
        <Breakdown
          title="Accounts and keys"
          dimensions={["account", "key", "project"]}
          span={span.value}
          filters={filters}
          measure={measure}
          link={link}
        />
        <Lazy>
          {() => (
            <Breakdown
              title="Models and endpoints"
              dimensions={["model", "endpoint", ...tags]}
              span={span.value}
              filters={filters}
              measure={measure}
            />
          )}
        </Lazy>
        <Lazy>{() => <Refused filters={filters} />}</Lazy>
        <Lazy>{() => <Proof />}</Lazy>
      </div>
    </>
  );
}

function link(dimension: string, value: string): string | null {
  if (value === "" || (dimension !== "account" && dimension !== "key")) return null;
  return hrefOf({ view: dimension, id: value, filters: place.value.filters.filter(([name]) => name !== dimension) });
}
