/** Headlines: a measure of an answer, or one made of measures exactly. */
import { amountOf, measureOf, type Measure } from "../api/measures";
import type { Cell, Row } from "../api/types";

/** A headline: a measure of the answer, or one made of them exactly, as the margin. */
export interface Headline {
  name: string;
  words: string;
  unit: Measure["unit"];
  of: (row: Row) => Cell | bigint;
  /** Whether more is good, bad, or neither: says the colour of a change. */
  more: "good" | "bad" | "neither";
}

export function headline(name: string, more: Headline["more"] = "neither", words = measureOf(name).words): Headline {
  return { name, words, unit: measureOf(name).unit, of: (row) => row[name] ?? null, more };
}

/** An amount that can be compared: `bigint` for money. */
export function comparable(cell: Cell | bigint): bigint | number {
  return typeof cell === "bigint" ? cell : typeof cell === "string" ? (amountOf(cell, "money") ?? 0) : (cell ?? 0);
}

/** Words of a span within a sentence. */
export function inSentence(words: string): string {
  return words.charAt(0).toLowerCase() + words.slice(1);
}
