/** A panel: heading, tools (CSV, the call that made it), and the states of what it loads. It fails alone. */
import type { ComponentChildren } from "preact";
import { useEffect, useId, useRef, useState } from "preact/hooks";
import type { Problem } from "../api/client";
import type { Loaded } from "../state/data";
import { CallButton } from "./call";

interface PanelProps {
  title: string;
  /** Beside the title, e.g. a span in words. */
  note?: ComponentChildren;
  tools?: ComponentChildren;
  csv?: string;
  curl?: string;
  loaded?: Loaded<unknown>;
  /** Shown instead of the children when there is nothing. */
  empty?: string | false;
  class?: string;
  children?: ComponentChildren;
}

export function Panel({ title, note, tools, csv, curl, loaded, empty, class: name = "", children }: PanelProps) {
  const id = useId();
  const first = loaded !== undefined && loaded.data === undefined;
  return (
    <section class={`panel ${name}`} aria-labelledby={id} aria-busy={loaded?.loading ?? false}>
      <header class="panel-head">
        <h2 id={id}>{title}</h2>
        {note && <span class="note">{note}</span>}
        <span class="tools">
          {tools}
          {curl && <CallButton curl={curl} what={title} />}
          {csv && (
            <a class="tool" href={csv} download="usage.csv" aria-label={`CSV of ${title}`}>
              CSV
            </a>
          )}
        </span>
      </header>
      {loaded?.problem && <ProblemNote problem={loaded.problem} reload={loaded.reload} stale={!first} />}
      {loaded && first && !loaded.problem && <Skeleton />}
      {!first &&
        (empty ? <p class="empty">{empty}</p> : <div class={loaded?.loading ? "stale" : undefined}>{children}</div>)}
    </section>
  );
}

const ADVICE: Record<number, string> = {
  401: "Log in again.",
  403: "This key may not see it.",
  429: "Too many calls: it is asked for again as soon as it is permitted.",
};

export function ProblemNote({
  problem,
  reload,
  stale = false,
}: {
  problem: Problem;
  reload?: () => void;
  stale?: boolean;
}) {
  const advice =
    ADVICE[problem.status] ?? (problem.status >= 500 || problem.status === 0 ? "It is tried again every 15 s." : "");
  return (
    <div class="problem" role="status">
      <p>
        <strong>{problem.message}</strong> {advice} {stale && "The numbers shown are of before."}
      </p>
      {reload && (
        <button type="button" class="tool" onClick={reload}>
          Try again
        </button>
      )}
    </div>
  );
}

/** Grey lines while nothing is known; after 4 s it says that the server is slow. */
export function Skeleton() {
  const [slow, setSlow] = useState(false);
  useEffect(() => {
    const timer = setTimeout(() => setSlow(true), 4000);
    return () => clearTimeout(timer);
  }, []);
  return (
    <div class="skeleton" role="status">
      <span class="sr">{slow ? "" : "Loading"}</span>
      {slow && <p>The server takes its time. Other panels go on.</p>}
      <i />
      <i />
      <i />
    </div>
  );
}

/** Children that are made only when they come near the view, so that the first view takes few calls. */
export function Lazy({ children, height = 250 }: { children: () => ComponentChildren; height?: number }) {
  const mark = useRef<HTMLDivElement>(null);
  const [near, setNear] = useState(false);
  useEffect(() => {
    if (!mark.current) return;
    const watcher = new IntersectionObserver(
      (entries) => entries.some((each) => each.isIntersecting) && setNear(true),
      {
        rootMargin: "0px",
      },
    );
    watcher.observe(mark.current);
    // Print shows everything.
    const all = (): void => setNear(true);
    addEventListener("beforeprint", all);
    return () => {
      watcher.disconnect();
      removeEventListener("beforeprint", all);
    };
  }, []);
  return near ? <>{children()}</> : <div ref={mark} style={{ minHeight: `${height}px` }} />;
}
