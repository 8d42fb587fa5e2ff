// Parses AsyncAPI documents with the official parser, which checks them against the specification and its own rules.
//
// Reads a list of documents from standard input. Writes a list with one entry for each: the list of what the parser
// reports, with `severity` ("error", "warning", "information", "hint"), `code`, `message` and `path`.
//
// The only argument is the folder whose node_modules contains the parser, because Node looks for packages next to the
// script.

"use strict";

const fs = require("node:fs");
const path = require("node:path");
const { createRequire } = require("node:module");
const { Parser } = createRequire(path.join(path.resolve(process.argv[2]), "asyncapi.js"))("@asyncapi/parser");

const SEVERITIES = ["error", "warning", "information", "hint"];

async function report(document) {
  const parsed = await new Parser().parse(JSON.stringify(document));
  const reported = parsed.diagnostics.map(({ severity, code, message, path }) => {
    return { severity: SEVERITIES[severity], code: String(code), message, path: path.join("/") };
  });
  const refused = !parsed.document && !reported.some(({ severity }) => severity === "error");
  return refused ? [...reported, { severity: "error", code: "refused", message: "no document", path: "" }] : reported;
}

async function main() {
  const reports = [];
  for (const document of JSON.parse(fs.readFileSync(0, "utf8"))) reports.push(await report(document));
  process.stdout.write(JSON.stringify(reports));
}

main();
