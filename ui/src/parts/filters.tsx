/** The one set of filters: chips that take a filter away, and a form that adds one. */
import { useState } from "preact/hooks";
import { DIMENSIONS, go, isDimension, place, toggleFilter } from "../state/place";
import { login } from "../state/login";
import { Dialog } from "./dialog";
import { dimensionWords, valueWords } from "./words";

export function FilterChips({ onAdd }: { onAdd: () => void }) {
  const { filters } = place.value;
  return (
    <div class="chips" role="group" aria-label="Filters">
      {filters.map(([name, value]) => (
        <button
          key={`${name}=${value}`}
          type="button"
          class="chip"
          onClick={() => toggleFilter(name, value)}
          aria-label={`Remove filter ${dimensionWords(name)} ${value}`}
        >
          <span class="chip-name">{dimensionWords(name)}</span> {valueWords(name, value)}{" "}
          <span aria-hidden="true">×</span>
        </button>
      ))}
      <button type="button" class="chip add" onClick={onAdd}>
        + Filter
      </button>
      {filters.length > 1 && (
        <button type="button" class="chip add" onClick={() => go({ filters: [] })}>
          Clear
        </button>
      )}
    </div>
  );
}

export function FilterDialog({ onClose }: { onClose: () => void }) {
  const [dimension, setDimension] = useState("model");
  const [tag, setTag] = useState("");
  const [value, setValue] = useState("");
  const names = DIMENSIONS.filter((name) => name !== "account" || login.value?.role === "operator");
  const name = dimension === "tag" ? `tag.${tag.trim()}` : dimension;
  const add = (event: Event): void => {
    event.preventDefault();
    if (!isDimension(name)) return;
    if (!place.value.filters.some(([one, other]) => one === name && other === value)) toggleFilter(name, value);
    onClose();
  };
  return (
    <Dialog title="Add a filter" onClose={onClose}>
      <form class="form" onSubmit={add}>
        <label>
          Dimension
          <select value={dimension} onChange={(event) => setDimension(event.currentTarget.value)}>
            {names.map((each) => (
              <option key={each} value={each}>
                {dimensionWords(each)}
              </option>
            ))}
            <option value="tag">Tag …</option>
          </select>
        </label>
        {dimension === "tag" && (
          <label>
            Name of the tag
            <input value={tag} required onInput={(event) => setTag(event.currentTarget.value)} />
          </label>
        )}
        <label>
          Value; empty for “none”
          <input value={value} autofocus onInput={(event) => setValue(event.currentTarget.value)} />
        </label>
        <p class="note">Several values of one dimension widen it; several dimensions narrow it.</p>
        <button type="submit" class="button primary">
          Add
        </button>
      </form>
    </Dialog>
  );
}
