/** Proof and health: counter = ledger = events as last verified, what waits for the usage store, holds in flight. */
import { useState } from "preact/hooks";
import { Problem, send } from "../api/client";
import { getHealth, type Health } from "../api/health";
import type { Verify } from "../api/types";
import { curlOf } from "../api/usage";
import { Panel, ProblemNote } from "../parts/panel";
import { countText } from "../format/number";
import { fromNow, instantText } from "../format/time";
import { useData } from "../state/data";
import { zone } from "../state/place";
import { minute } from "../state/span";

export function Proof() {
  const loaded = useData("health", getHealth);
  const [verdict, setVerdict] = useState<Verify | null>(null);
  const [problem, setProblem] = useState<Problem | null>(null);
  const [busy, setBusy] = useState(false);
  const verify = async (): Promise<void> => {
    setBusy(true);
    setProblem(null);
    try {
      setVerdict(await send<Verify>("POST", "verify"));
      loaded.reload();
    } catch (error) {
      setProblem(error instanceof Problem ? error : new Problem(0, String(error)));
    }
    setBusy(false);
  };
  return (
    <Panel
      title="Proof and health"
      loaded={loaded}
      curl={curlOf("verify", [], "POST")}
      tools={
        <button type="button" class="tool" disabled={busy} onClick={() => void verify()}>
          {busy ? "Verifying …" : "Verify now"}
        </button>
      }
    >
      {problem && <ProblemNote problem={problem} />}
      {loaded.data && <Facts health={loaded.data} verdict={verdict} />}
    </Panel>
  );
}

function Facts({ health, verdict }: { health: Health; verdict: Verify | null }) {
  const { verifiedAt, differences } = health;
  const equal = verdict ? verdict.ok : differences === 0;
  const count = verdict ? verdict.differences.length + verdict.store_differences.length : (differences ?? 0);
  return (
    <>
      <p class={`verdict ${verifiedAt === null && !verdict ? "" : equal ? "ok" : "bad"}`}>
        {verifiedAt === null && !verdict
          ? "Counter = ledger = sum of events has not been verified since the start."
          : equal
            ? "Counter = ledger = sum of events, to the last nano."
            : `${countText(count)} differences between counters, ledger and events.`}
        {verifiedAt !== null && (
          <span class="note">
            {" "}
            Verified {fromNow(verifiedAt, minute.value)}, {instantText(verifiedAt, zone.value)}.
          </span>
        )}
      </p>
      {verdict && verdict.differences.length > 0 && (
        <ul class="plain">
          {verdict.differences.slice(0, 20).map((each) => (
            <li key={each.account + each.what}>
              {each.account}, {each.what}: {each.found}, must be {each.expected}
            </li>
          ))}
        </ul>
      )}
      <dl class="facts">
        <Fact words="Holds in flight" value={health.holds} />
        <Fact
          words="Waiting for the usage store"
          value={health.outbox}
          bad={health.relayFailing}
          note={health.outboxAgeS ? `oldest ${Math.ceil(health.outboxAgeS)} s` : "no lag"}
        />
        <Fact
          words="Set aside"
          value={health.setAside}
          bad={(health.setAside ?? 0) > 0}
          note={health.setAside ? "in no answer: see verify" : ""}
        />
        <div>
          <dt>Gate</dt>
          <dd>
            <b class={health.refusing ? "bad" : "ok"}>{health.refusing ? "refuses all" : "admits"}</b>
          </dd>
        </div>
        <div>
          <dt>Last backup</dt>
          <dd>
            <b>{health.backupAt === null ? "none since start" : fromNow(health.backupAt, minute.value)}</b>
          </dd>
        </div>
      </dl>
    </>
  );
}

function Fact({
  words,
  value,
  note = "",
  bad = false,
}: {
  words: string;
  value: number | null;
  note?: string;
  bad?: boolean;
}) {
  return (
    <div>
      <dt>{words}</dt>
      <dd>
        <b class={bad ? "bad" : undefined}>{value === null ? "–" : countText(value)}</b>{" "}
        {note && <span class="note">{note}</span>}
      </dd>
    </div>
  );
}
