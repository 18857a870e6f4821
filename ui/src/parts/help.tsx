/** The keys of the keyboard, and the switch that turns them off. */
import { keyboard } from "../state/preferences";
import type { Shortcut } from "../state/shortcuts";
import { Dialog } from "./dialog";

export function Help({ shortcuts, onClose }: { shortcuts: readonly Shortcut[]; onClose: () => void }) {
  return (
    <Dialog title="Keyboard" onClose={onClose}>
      <table class="keys">
        <caption class="sr">Keys</caption>
        <thead class="sr">
          <tr>
            <th scope="col">Key</th>
            <th scope="col">What it does</th>
          </tr>
        </thead>
        <tbody>
          {shortcuts.map((each) => (
            <tr key={each.keys}>
              <th scope="row">
                {each.keys.split(" ").map((key) => (
                  <kbd key={key}>{key}</kbd>
                ))}
              </th>
              <td>{each.what}</td>
            </tr>
          ))}
          <tr>
            <th scope="row">
              <kbd>Enter</kbd>
            </th>
            <td>Open or filter by the row</td>
          </tr>
          <tr>
            <th scope="row">
              <kbd>Esc</kbd>
            </th>
            <td>Close a dialog, or take the last filter away</td>
          </tr>
        </tbody>
      </table>
      <label class="check">
        <input
          type="checkbox"
          checked={keyboard.value === "on"}
          onChange={(event) => {
            keyboard.value = event.currentTarget.checked ? "on" : "off";
          }}
        />{" "}
        Use these keys
      </label>
      <p class="note">
        They never act together with Ctrl, Alt or Meta, nor while you type. Drag over a chart to zoom; the browser’s
        Back takes it back.
      </p>
    </Dialog>
  );
}
