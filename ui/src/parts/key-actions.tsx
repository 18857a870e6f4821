/** What may be done to a key. Each action is confirmed; a secret is shown once and then gone. */
import { useState } from "preact/hooks";
import { Problem, type Params } from "../api/client";
import { createKey, rotateKey, setKeyState, type IssuedKey } from "../api/catalog";
import type { Key } from "../api/types";
import { login } from "../state/login";
import { CopyButton } from "./call";
import { Dialog } from "./dialog";
import { ProblemNote } from "./panel";

type Action = "rotate" | "deactivate" | "activate" | "revoke";

const WORDS: Record<Action, readonly [button: string, what: string]> = {
  rotate: ["Rotate", "Makes a new key with another secret. The old one goes on for the overlap that you choose."],
  deactivate: ["Deactivate", "Its requests are refused at once. It can be activated again."],
  activate: ["Activate", "Its requests are admitted again, at once."],
  revoke: ["Revoke", "Its requests are refused at once and for ever: a revoked key never works again."],
};

export function KeyActions({ entry, onChange }: { entry: Key; onChange: () => void }) {
  const [action, setAction] = useState<Action | null>(null);
  const role = login.value?.role;
  if (role === "consumption" || (role === "management" && entry.role === "management")) return null;
  if (entry.state === "revoked" || entry.state === "deleted" || entry.state === "expired") return null;
  const actions: Action[] = entry.state === "active" ? ["rotate", "deactivate", "revoke"] : ["activate", "revoke"];
  const params: Params = role === "operator" ? [["account", entry.account]] : [];
  return (
    <>
      {actions.map((each) => (
        <button
          key={each}
          type="button"
          class={`tool ${each === "revoke" ? "danger" : ""}`}
          onClick={() => setAction(each)}
          aria-label={`${WORDS[each][0]} ${entry.id}`}
        >
          {WORDS[each][0]}
        </button>
      ))}
      {action && (
        <Confirm
          action={action}
          entry={entry}
          params={params}
          onClose={(done) => {
            setAction(null);
            if (done) onChange();
          }}
        />
      )}
    </>
  );
}

interface ConfirmProps {
  action: Action;
  entry: Key;
  params: Params;
  onClose: (done: boolean) => void;
}

function Confirm({ action, entry, params, onClose }: ConfirmProps) {
  const [overlapH, setOverlapH] = useState("24");
  const [typed, setTyped] = useState("");
  const [issued, setIssued] = useState<IssuedKey | null>(null);
  const { run, busy, problem } = useAction();
  const [button, what] = WORDS[action];
  const act = (event: Event): void => {
    event.preventDefault();
    void run(async () => {
      if (action === "rotate") setIssued(await rotateKey(entry, Math.round(Number(overlapH) * 3600), params));
      else {
        await setKeyState(entry, { activate: "active", deactivate: "inactive", revoke: "revoked" }[action], params);
        onClose(true);
      }
    });
  };
  if (issued) return <SecretDialog issued={issued} onClose={() => onClose(true)} />;
  const sure = action !== "revoke" || typed === entry.id;
  return (
    <Dialog title={`${button} ${entry.id}?`} onClose={() => onClose(false)}>
      <form class="form" onSubmit={act}>
        <p>{what}</p>
        {action === "rotate" && (
          <label>
            Hours for which the old secret still works
            <input
              type="number"
              min="0"
              max="720"
              step="any"
              value={overlapH}
              required
              onInput={(event) => setOverlapH(event.currentTarget.value)}
            />
          </label>
        )}
        {action === "revoke" && (
          <label>
            To confirm, type <b>{entry.id}</b>
            <input value={typed} autocomplete="off" onInput={(event) => setTyped(event.currentTarget.value)} />
          </label>
        )}
        {problem && <ProblemNote problem={problem} />}
        <p class="buttons">
          <button type="submit" class={`button ${action === "revoke" ? "danger" : "primary"}`} disabled={busy || !sure}>
            {button}
          </button>
          <button type="button" class="button" onClick={() => onClose(false)}>
            Cancel
          </button>
        </p>
      </form>
    </Dialog>
  );
}

export function CreateKey({ account, onClose }: { account: string | null; onClose: () => void }) {
  const [fields, setFields] = useState({ id: "", name: "", account: account ?? "", project: "", expires: "" });
  const [issued, setIssued] = useState<IssuedKey | null>(null);
  const { run, busy, problem } = useAction();
  const set = (name: keyof typeof fields) => (event: { currentTarget: HTMLInputElement }) =>
    setFields({ ...fields, [name]: event.currentTarget.value });
  const act = (event: Event): void => {
    event.preventDefault();
    const asked: Record<string, unknown> = {};
    if (fields.id) asked.id = fields.id;
    if (fields.name) asked.name = fields.name;
    if (login.value?.role === "operator") asked.account = fields.account;
    if (fields.project) asked.project = fields.project;
    if (fields.expires) asked.expires_at = `${fields.expires}T00:00:00Z`;
    void run(async () => setIssued(await createKey(asked)));
  };
  if (issued) return <SecretDialog issued={issued} onClose={onClose} />;
  return (
    <Dialog title="Create a key" onClose={onClose}>
      <form class="form" onSubmit={act}>
        {login.value?.role === "operator" && (
          <label>
            Account
            <input
              value={fields.account}
              required
              disabled={account !== null}
              autofocus={account === null}
              onInput={set("account")}
            />
          </label>
        )}
        <label>
          Name, for people
          <input
            value={fields.name}
            autofocus={login.value?.role !== "operator" || account !== null}
            onInput={set("name")}
          />
        </label>
        <label>
          Id; one is made when it is left empty
          <input value={fields.id} pattern="[A-Za-z0-9._\-]+" onInput={set("id")} />
        </label>
        <label>
          Project, if any
          <input value={fields.project} onInput={set("project")} />
        </label>
        <label>
          Expires on, if ever (midnight UTC)
          <input type="date" value={fields.expires} onInput={set("expires")} />
        </label>
        {problem && <ProblemNote problem={problem} />}
        <p class="buttons">
          <button type="submit" class="button primary" disabled={busy}>
            Create
          </button>
          <button type="button" class="button" onClick={onClose}>
            Cancel
          </button>
        </p>
      </form>
    </Dialog>
  );
}

function SecretDialog({ issued, onClose }: { issued: IssuedKey; onClose: () => void }) {
  return (
    <Dialog title={`The secret of ${issued.entry.id}`} onClose={onClose} firm>
      {issued.secret === null ? (
        <p>It has the secret whose hash was brought.</p>
      ) : (
        <>
          <p>
            <strong>It is shown this once.</strong> Only its hash is stored; keep it where secrets are kept.
          </p>
          <pre class="code secret" tabIndex={0}>
            {issued.secret}
          </pre>
          <p class="buttons">
            <CopyButton text={issued.secret} words="Copy the secret" />
            <button type="button" class="button" onClick={onClose}>
              I have kept it
            </button>
          </p>
        </>
      )}
    </Dialog>
  );
}

function useAction() {
  const [busy, setBusy] = useState(false);
  const [problem, setProblem] = useState<Problem | null>(null);
  const run = async (act: () => Promise<void>): Promise<void> => {
    setBusy(true);
    setProblem(null);
    try {
      await act();
    } catch (error) {
      setProblem(error instanceof Problem ? error : new Problem(0, String(error)));
    }
    setBusy(false);
  };
  return { run, busy, problem };
}
