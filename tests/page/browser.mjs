/**
 * A real browser for tests of the page: Chromium, driven by playwright-core, at the commands of `tests.page.browser`.
 *
 * A command is a line of JSON on stdin, `{"do": NAME, "args": [...]}`; its answer is a line on stdout, `{"value": …}` or
 * `{"error": TEXT}`. Each tab has a context of its own (cookies, storage), and what went wrong in it is kept for `report`.
 */
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const [modules, chromium] = process.argv.slice(2);
const require = createRequire(`${modules}/`);
const axeSource = require("axe-core").source;
const browser = await require("playwright-core").chromium.launch({
  executablePath: chromium,
  args: [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
  ],
});
const tabs = new Map();
const WAIT_MS = 60_000; // The machine of the tests may be busy; what is there is found at once.

const commands = {
  async open(name, base, options) {
    const context = await browser.newContext({ locale: "en-GB", timezoneId: "America/New_York", acceptDownloads: true, ...options });
    context.setDefaultTimeout(WAIT_MS);
    const page = await context.newPage();
    const tab = { context, page, console: [], violations: [], foreign: [], answers: [] };
    await page.exposeFunction("tellViolation", (text) => tab.violations.push(text));
    await page.addInitScript(() => {
      addEventListener("securitypolicyviolation", (event) => window.tellViolation(`${event.violatedDirective}: ${event.blockedURI}`));
    });
    page.on("console", (message) => {
      if (message.type() === "error" || message.type() === "warning") tab.console.push(`${message.text()} ${message.location().url}`);
    });
    page.on("pageerror", (error) => tab.console.push(`uncaught: ${error.message}`));
    page.on("dialog", (dialog) => {
      tab.console.push(`dialog: ${dialog.message()}`);
      void dialog.dismiss();
    });
    page.on("request", (request) => {
      if (!request.url().startsWith(base) && !request.url().startsWith("data:")) tab.foreign.push(request.url());
    });
    page.on("response", (response) => {
      tab.answers.push([response.request().method(), response.url().slice(base.length), response.status()]);
    });
    tabs.set(name, tab);
  },
  async close(name) {
    await tabs.get(name).context.close();
    tabs.delete(name);
  },
  /** A method of playwright's `Page`, by its name. */
  async page(name, method, ...args) {
    const found = await tabs.get(name).page[method](...args);
    return typeof found === "object" && found !== null && !Array.isArray(found) && found.constructor !== Object ? null : found;
  },
  async press(name, key) {
    await tabs.get(name).page.keyboard.press(key);
  },
  async cookies(name) {
    return tabs.get(name).context.cookies(tabs.get(name).page.url() + "tk/v1/login");
  },
  /** The rows of the table in the panel with a heading: for each cell its text and title. */
  async table(name, heading) {
    const panel = tabs.get(name).page.locator("section.panel", { has: tabs.get(name).page.getByRole("heading", { name: heading, exact: true }) });
    await panel.locator("tbody tr").first().waitFor();
    return panel.locator("table").first().evaluate((table) =>
      [...table.tBodies[0].rows].map((row) => [...row.cells].map((cell) => [cell.innerText.trim(), cell.title || ""])));
  },
  async axe(name) {
    const { page } = tabs.get(name);
    await page.evaluate(axeSource);
    const found = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
    return found.violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.target.join(" ")).join(", ")}`);
  },
  /** What went wrong in a tab since the last call. */
  async report(name) {
    const tab = tabs.get(name);
    const { console, violations, foreign } = tab;
    Object.assign(tab, { console: [], violations: [], foreign: [] });
    return { console, violations, foreign };
  },
  /** Method, path and status of what the tab asked for since the last call. */
  async answers(name) {
    return tabs.get(name).answers.splice(0);
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { do: what, args } = JSON.parse(line);
  try {
    const value = await commands[what](...args);
    process.stdout.write(`${JSON.stringify({ value: value ?? null })}\n`);
  } catch (error) {
    process.stdout.write(`${JSON.stringify({ error: String(error.message ?? error) })}\n`);
  }
}
await browser.close();
