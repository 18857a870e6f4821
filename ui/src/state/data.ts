/**
 * What one panel loads: each loads and fails alone. A change of its name (range, filter) cancels the call under way;
 * what was there stays until the answer comes, so nothing flickers.
 */
import { useEffect, useRef, useState } from "preact/hooks";
import { Problem } from "../api/client";
import { answeredAt, refreshes } from "./refresh";

export interface Loaded<T> {
  data: T | undefined;
  problem: Problem | null;
  /** A call for another range or filter is under way; `data` is of before. */
  loading: boolean;
  reload: () => void;
}

const kept = new Map<string, unknown>();
const KEPT_MAX = 80;

export function forgetData(): void {
  kept.clear();
}

function keep(name: string, data: unknown): void {
  kept.delete(name);
  kept.set(name, data);
  if (kept.size > KEPT_MAX) kept.delete(kept.keys().next().value ?? "");
}

/** Load by *load* whenever *name* changes; null loads nothing. *live* asks again with each refresh. */
export function useData<T>(name: string | null, load: (signal: AbortSignal) => Promise<T>, live = true): Loaded<T> {
  const [state, setState] = useState<{ name: string | null; data: T | undefined; problem: Problem | null }>(() => ({
    name,
    data: name === null ? undefined : (kept.get(name) as T | undefined),
    problem: null,
  }));
  const [turn, setTurn] = useState(0);
  const tick = live ? refreshes.value : 0;
  const run = useRef({ abort: new AbortController(), busy: false, notBefore: 0 });

  const start = (abort: AbortController): void => {
    if (name === null) return;
    const mine = { abort, busy: true, notBefore: 0 };
    run.current = mine;
    load(abort.signal).then(
      (data) => {
        if (abort.signal.aborted) return;
        mine.busy = false;
        keep(name, data);
        answeredAt.value = Date.now();
        setState((was) =>
          was.name === name && was.data === data && !was.problem ? was : { name, data, problem: null },
        );
      },
      (error: unknown) => {
        if (abort.signal.aborted) return;
        mine.busy = false;
        const problem = error instanceof Problem ? error : new Problem(0, `This page failed: ${String(error)}`, "page");
        mine.notBefore = Date.now() + (problem.retryAfterS ?? 0) * 1000;
        setState((was) => ({ name, data: was.name === name ? was.data : undefined, problem }));
      },
    );
  };
  useEffect(() => {
    const abort = new AbortController();
    start(abort);
    return () => abort.abort();
  }, [name, turn]);
  // A tick never cancels a slow call, and waits as long as a refusal said.
  useEffect(() => {
    const { abort, busy, notBefore } = run.current;
    if (tick > 0 && !busy && !abort.signal.aborted && Date.now() >= notBefore) start(abort);
  }, [tick]);
  const known = name !== null && state.name !== name ? (kept.get(name) as T | undefined) : undefined;
  return {
    data: known ?? state.data,
    problem: state.name === name ? state.problem : null,
    loading:
      name !== null && state.name !== name && known === undefined
        ? true
        : state.data === undefined && state.problem === null && name !== null,
    reload: () => setTurn((count) => count + 1),
  };
}
