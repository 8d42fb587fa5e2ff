// Validates JSON documents against a JSON Schema with Ajv, in its strictest form: the schema itself must be valid, and
// must not contain a keyword or a format that Ajv does not know.
//
// Reads { "schema": …, "documents": […] } from standard input. Writes a list with one entry for each document: null if it
// is valid, otherwise its errors as text.
//
// The only argument is the folder whose node_modules contains Ajv, because Node looks for packages next to the script.

"use strict";

const fs = require("node:fs");
const path = require("node:path");
const { createRequire } = require("node:module");
const Ajv = createRequire(path.join(path.resolve(process.argv[2]), "schema.js"))("ajv/dist/2020");

const { schema, documents } = JSON.parse(fs.readFileSync(0, "utf8"));
// Ajv itself knows no format. The only one that the schemas use is a time.
const time = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$/;
const options = { strict: true, strictRequired: false, allowUnionTypes: true, allErrors: true };
const ajv = new Ajv({ ...options, formats: { "date-time": time } });
const validate = ajv.compile(schema);
const verdicts = documents.map((document) => (validate(document) ? null : ajv.errorsText(validate.errors)));
process.stdout.write(JSON.stringify(verdicts));
