/**
 * Builds the page into src/tollkeeper/page/: index.html, and below assets/ files with a hash of their content in the
 * name. The same source gives the same bytes. Nothing is written when the page is larger than GZIP_BYTES_MAX.
 *
 * index.html is made of ui/index.html: {{styles}} and {{scripts}} stand for the built files, by relative URLs, so that
 * the page works under any prefix.
 */
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { basename, dirname, join, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const GZIP_BYTES_MAX = 80_000; // All files together, as a browser loads them.

const here = dirname(fileURLToPath(import.meta.url));
const target = resolve(here, process.argv[2] ?? "../src/tollkeeper/page");

const built = await build({
  absWorkingDir: here,
  entryPoints: ["src/main.tsx"],
  outdir: target,
  entryNames: "assets/[name]-[hash]",
  chunkNames: "assets/[name]-[hash]",
  assetNames: "assets/[name]-[hash]",
  bundle: true,
  splitting: true,
  format: "esm",
  platform: "browser",
  target: ["es2022"],
  jsx: "automatic",
  jsxImportSource: "preact",
  minify: true,
  define: { "process.env.NODE_ENV": '"production"' },
  loader: { ".svg": "file", ".png": "file", ".woff2": "file" },
  legalComments: "none", // licenses.txt has the licence of every package that is in the bundle.
  charset: "utf8",
  metafile: true,
  write: false,
  logLevel: "warning",
});

const files = new Map(built.outputFiles.map((file) => [relative(target, file.path), Buffer.from(file.contents)]));
files.set("index.html", Buffer.from(index()));
const licenses = licensesOf(packagesIn(built.metafile));

const sizes = [...files].map(([name, bytes]) => [name, bytes.length, gzipSync(bytes, { level: 9 }).length]);
const total = sizes.reduce((sum, [, , gzip]) => sum + gzip, 0);
for (const [name, plain, gzip] of sizes) {
  console.log(`${name.padEnd(40)} ${String(plain).padStart(8)} bytes ${String(gzip).padStart(8)} gzip`);
}
console.log(`${"all".padEnd(40)} ${"".padStart(14)} ${String(total).padStart(8)} gzip, of ${GZIP_BYTES_MAX} at most`);
if (total > GZIP_BYTES_MAX) {
  console.error(`The page has ${total} bytes gzip, ${total - GZIP_BYTES_MAX} more than it may have. Nothing was written.`);
  process.exit(1);
}

rmSync(join(target, "assets"), { recursive: true, force: true });
mkdirSync(join(target, "assets"), { recursive: true });
for (const [name, bytes] of files) {
  if (name !== "index.html") writeFileSync(join(target, name), bytes);
}
writeFileSync(join(target, "licenses.txt"), licenses);
writeFileSync(join(target, "index.html"), files.get("index.html")); // Last: a page that is there is whole.

/** The template with the names of the built files. */
function index() {
  const [entry, output] = Object.entries(built.metafile.outputs).find(([, made]) => made.entryPoint === "src/main.tsx");
  const script = `assets/${basename(entry)}`;
  const styles = output.cssBundle ? [`assets/${basename(output.cssBundle)}`] : [];
  const template = readFileSync(join(here, "index.html"), "utf8");
  for (const mark of ["{{styles}}", "{{scripts}}"]) {
    if (!template.includes(mark)) throw new Error(`ui/index.html must have ${mark}`);
  }
  return template
    .replace("{{styles}}", () => styles.map((url) => `<link rel="stylesheet" href="${url}">`).join("\n"))
    .replace("{{scripts}}", () => `<script type="module" src="${script}"></script>`);
}

/** The directories of the packages of which a file is in the bundle, by name. */
function packagesIn(metafile) {
  const found = new Set();
  for (const output of Object.values(metafile.outputs)) {
    for (const [input, { bytesInOutput }] of Object.entries(output.inputs)) {
      const [, name] = input.match(/^node_modules\/((?:@[^/]+\/)?[^/]+)\//) ?? [];
      if (name !== undefined && bytesInOutput > 0) found.add(name);
    }
  }
  return [...found].sort();
}

/** Name, version and licence text of each package: the licences require that copies carry them. */
function licensesOf(names) {
  return names
    .map((name) => {
      const root = join(here, "node_modules", name);
      const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
      const file = ["LICENSE", "LICENSE.md", "LICENSE.txt"].map((each) => join(root, each)).find(existsSync);
      if (file === undefined) throw new Error(`${name} ${version} is in the bundle and has no LICENSE file`);
      return `${name} ${version}\n\n${readFileSync(file, "utf8").trim()}\n`;
    })
    .join("\n---\n\n");
}
