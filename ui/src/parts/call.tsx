/** The call that made a panel, to be copied: the page cannot disagree with the API. */
import { useState } from "preact/hooks";
import { Dialog } from "./dialog";

export function CallButton({ curl, what }: { curl: string; what: string }) {
  const [open, setOpen] = useState(false);
  return (
    <>
      <button type="button" class="tool" onClick={() => setOpen(true)} aria-label={`curl of ${what}`}>
        curl
      </button>
      {open && (
        <Dialog title={`The call behind “${what}”`} onClose={() => setOpen(false)}>
          <pre class="code" tabIndex={0}>
            {curl}
          </pre>
          <CopyButton text={curl} />
        </Dialog>
      )}
    </>
  );
}

export function CopyButton({ text, words = "Copy" }: { text: string; words?: string }) {
  const [said, setSaid] = useState("");
  const copy = (): void => {
    // Only a secure context has a clipboard; the text can be selected by hand in any.
    if (!navigator.clipboard) return setSaid("Select the text and copy it");
    navigator.clipboard.writeText(text).then(
      () => setSaid("Copied"),
      () => setSaid("Select the text and copy it"),
    );
  };
  return (
    <button type="button" class="button" onClick={copy} aria-live="polite">
      {said || words}
    </button>
  );
}
