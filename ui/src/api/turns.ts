/**
 * Turns of the calls that read the usage store. The server runs two of an account at once and refuses those that wait
 * too long: so the page has no more under way, and one that is refused for another page's calls is made again.
 */
import { Problem } from "./client";

const RUNNING_MAX = 2;
const TRIES_MAX = 4;
const PAUSE_S = 1;

let running = 0;
const waiting: (() => void)[] = [];

/** Make *call* when it is its turn. Throws what it throws; the signal's reason when it is aborted before. */
export async function inTurn<T>(signal: AbortSignal | undefined, call: () => Promise<T>): Promise<T> {
  for (let tries = 1; ; tries += 1) {
    await take(signal);
    try {
      return await call();
    } catch (error) {
      if (tries >= TRIES_MAX || !(error instanceof Problem) || error.code !== "too_many_queries") throw error;
      await pause((error.retryAfterS ?? PAUSE_S) * 1000, signal);
    } finally {
      const next = waiting.shift();
      if (next) next();
      else running -= 1;
    }
  }
}

function take(signal: AbortSignal | undefined): Promise<void> {
  signal?.throwIfAborted();
  if (running < RUNNING_MAX) {
    running += 1;
    return Promise.resolve();
  }
  return new Promise((resolve, reject) => {
    const go = (): void => {
      signal?.removeEventListener("abort", leave);
      resolve();
    };
    const leave = (): void => {
      waiting.splice(waiting.indexOf(go), 1);
      reject(signal?.reason as Error);
    };
    waiting.push(go);
    signal?.addEventListener("abort", leave, { once: true });
  });
}

function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const leave = (): void => {
      clearTimeout(timer);
      reject(signal?.reason as Error);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", leave);
      resolve();
    }, ms);
    signal?.addEventListener("abort", leave, { once: true });
  });
}
