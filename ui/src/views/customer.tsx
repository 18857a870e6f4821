/** The page of a key or an account: what is left, what was used by what, what was refused and why, recent requests. */
import { Breakdown } from "../parts/breakdown";
import { LeftOfAccount, LeftOfKey } from "../parts/left";
import { Lazy } from "../parts/panel";
import { Refused } from "../parts/refused";
import { headline } from "../parts/headline";
import { Trends } from "../parts/trends";
import { RecentRequests } from "../parts/requests";
import { useTagNames } from "../state/tags";
import { hrefOf, place, type Filter } from "../state/place";
import { span } from "../state/span";

const HEADLINES = [
  headline("cost_nanos"),
  headline("requests"),
  headline("tokens"),
  headline("errors", "bad"),
  headline("denied", "bad"),
  headline("latency_ms_p95", "bad"),
];
const MEASURES = HEADLINES.map((each) => each.name);

interface CustomerProps {
  account?: string;
  keyId?: string;
  /** The scope as filters; empty where the login itself is the scope. */
  scope: readonly Filter[];
}

export function Customer({ account, keyId, scope }: CustomerProps) {
  const filters = [...place.value.filters, ...scope];
  const measure = HEADLINES.find((each) => each.name === place.value.options.measure)?.name ?? "cost_nanos";
  const tags = useTagNames();
  const who = keyId ? ["project"] : ["key", "project"];
  return (
    <>
      {keyId ? <LeftOfKey id={keyId} /> : account && <LeftOfAccount account={account} />}
      <Trends headlines={HEADLINES} measures={MEASURES} filters={filters} />
      <div class="grid">
        <Breakdown
          title="Models and endpoints"
          dimensions={["model", "endpoint"]}
          span={span.value}
          filters={filters}
          measure={measure}
        />
        <Breakdown
          title={keyId ? "Projects and tags" : "Keys, projects and tags"}
          dimensions={[...who, ...tags]}
          span={span.value}
          filters={filters}
          measure={measure}
          link={(dimension, value) => (dimension === "key" && value ? hrefOf({ view: "key", id: value }) : null)}
        />
        <Lazy>{() => <Refused filters={filters} />}</Lazy>
        <Lazy>
          {() => (
            <Breakdown
              title="Outcome"
              dimensions={["status", "error_type", "kind", "cache"]}
              span={span.value}
              filters={filters}
              measure={measure === "cost_nanos" ? "requests" : measure}
            />
          )}
        </Lazy>
      </div>
      <Lazy>{() => <RecentRequests filters={filters} />}</Lazy>
    </>
  );
}
