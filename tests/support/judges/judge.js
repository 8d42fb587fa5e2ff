// Reads messages like a consumer with the JavaScript CloudEvents SDK, and reports what it reads.
//
// Requests and answers are those of judge.py, and so are the rules that are checked here because the SDK does not check
// them. In addition, this SDK
//   - invents a missing id, time or specversion, and its Kafka reader checks nothing unless asked to;
//   - returns `false` and throws nothing for an unknown specversion;
//   - cannot read a structured Kafka message without time, which is optional: such a message goes to its constructor;
//   - replaces the attribute partitionkey with the record's key: so it gets the attribute as the key;
//   - leaves the attributes of a binary HTTP request percent-encoded: they are decoded here after it has read them;
//   - compares the content type of a structured HTTP request letter by letter, and knows only `charset=utf-8`.
//
// The only argument is the folder of the SDK, because Node looks for packages next to the script.

"use strict";

const path = require("node:path");
const readline = require("node:readline");
const { createRequire } = require("node:module");
const { CloudEvent, HTTP, Kafka } = createRequire(path.join(path.resolve(process.argv[2]), "judge.js"))("cloudevents");

const JSON_EVENT = "application/cloudevents+json";
const JSON_DATA = /^[a-z0-9!#$&^_.+-]+\/([a-z0-9!#$&^_.-]+\+)?json\s*(;.*)?$/i;
const TIMESTAMP = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$/i;
const STRINGS = ["specversion", "id", "source", "type", "datacontenttype", "dataschema", "subject", "time"];
const URI = /^(?:[A-Za-z0-9._~:/?#[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*$/;

class Refused extends Error {}

const has = (object, name) => Object.prototype.hasOwnProperty.call(object, name);

function isAllowed(character) {
  const code = character.codePointAt(0);
  const control = code <= 0x1f || (code >= 0x7f && code <= 0x9f);
  const surrogate = code >= 0xd800 && code <= 0xdfff;
  const noncharacter = (code >= 0xfdd0 && code <= 0xfdef) || (code & 0xfffe) === 0xfffe;
  return !control && !surrogate && !noncharacter;
}

function checkAttributes(attributes) {
  for (const name of ["specversion", "id", "source", "type"]) {
    if (!has(attributes, name)) throw new Refused(`attribute ${name} is missing`);
  }
  for (const [name, value] of Object.entries(attributes)) {
    if (!/^[a-z0-9]+$/.test(name)) throw new Refused(`attribute name '${name}' must contain only a-z and 0-9`);
    if (typeof value === "string") {
      if (value === "") throw new Refused(`attribute ${name} is empty`);
      if (![...value].every(isAllowed)) throw new Refused(`attribute ${name} holds a character that isn't allowed`);
    } else if (typeof value === "number" && Number.isInteger(value)) {
      if (value !== (value | 0)) throw new Refused(`attribute ${name} is an integer beyond 32 bits`);
    } else if (typeof value !== "boolean") {
      throw new Refused(`attribute ${name} is neither a string nor a boolean nor an integer`);
    }
  }
  for (const name of STRINGS) {
    if (has(attributes, name) && typeof attributes[name] !== "string") {
      throw new Refused(`attribute ${name} isn't a string`);
    }
  }
  if (attributes.specversion !== "1.0") throw new Refused(`specversion is '${attributes.specversion}'`);
  if (has(attributes, "time")) {
    if (!TIMESTAMP.test(attributes.time) || Number.isNaN(Date.parse(attributes.time))) {
      throw new Refused(`time '${attributes.time}' isn't an RFC 3339 timestamp`);
    }
  }
  for (const name of ["source", "dataschema"]) {
    if (has(attributes, name) && !URI.test(attributes[name])) {
      throw new Refused(`attribute ${name} contains a character that is not allowed in a URI`);
    }
  }
  if (has(attributes, "dataschema") && !/^[A-Za-z][A-Za-z0-9+.-]*:/.test(attributes.dataschema)) {
    throw new Refused("dataschema isn't an absolute URI");
  }
}

function textOf(name, value) {
  if (typeof value !== "string") throw new Refused(`header ${name} has no value or isn't UTF-8`);
  return value;
}

// A header's value in the bindings of NATS and HTTP: possibly quoted, then percent-encoded exactly once.
function undoPercent(name, value) {
  if (value.startsWith('"')) {
    if (!/^"(?:[^"\\]|\\.)*"$/s.test(value)) throw new Refused(`header ${name} has an unbalanced quote`);
    value = value.slice(1, -1).replace(/\\(.)/gs, "$1");
  } else if (/[^\x21-\x7e]|"/.test(value)) {
    throw new Refused(`header ${name} isn't percent-encoded`);
  }
  try {
    return decodeURIComponent(value);
  } catch {
    throw new Refused(`header ${name} has a bare percent sign, or is not UTF-8 after percent-decoding`);
  }
}

function splitHeaders(transport, headers) {
  const prefix = transport === "kafka" ? "ce_" : "ce-";
  let contentType;
  const attributes = {};
  for (const [name, value] of headers) {
    if (name.toLowerCase() === "content-type") {
      if (transport === "kafka" && name !== "content-type") {
        throw new Refused(`header ${name}: Kafka's readers look for content-type, in lower case`);
      }
      if (contentType !== undefined) throw new Refused("two content types");
      contentType = textOf(name, value);
    } else if (name.toLowerCase().startsWith(prefix)) {
      if (!name.startsWith(prefix)) throw new Refused(`header ${name}: the prefix is ${prefix}, in lower case`);
      const attribute = name.slice(prefix.length);
      if (has(attributes, attribute)) throw new Refused(`two headers ${name}`);
      const text = textOf(name, value);
      attributes[attribute] = transport === "kafka" ? text : undoPercent(name, text);
    }
  }
  return [contentType, attributes];
}

const utf8 = (body) => new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(body);

function structured(transport, headers, contentType, repeated, body) {
  if (contentType !== undefined && contentType.split(";")[0].trim().toLowerCase() !== JSON_EVENT) {
    throw new Refused(`content type ${contentType}: the format read here is ${JSON_EVENT}`);
  }
  if (body === null) throw new Refused("a structured event without a body");
  const text = utf8(body);
  const members = JSON.parse(text);
  if (typeof members !== "object" || members === null || Array.isArray(members)) {
    throw new Refused("the body isn't a JSON object");
  }
  if (has(members, "data") && has(members, "data_base64")) throw new Refused("both data and data_base64");
  const attributes = { ...members };
  delete attributes.data;
  delete attributes.data_base64;
  checkAttributes(attributes);
  for (const [name, value] of Object.entries(repeated)) {
    if (name === "datacontenttype" || String(attributes[name]) !== value) {
      throw new Refused(`header of attribute ${name} says '${value}', the body '${attributes[name]}'`);
    }
  }
  if (transport === "http") return [HTTP.toEvent({ headers, body: text }), attributes];
  const event =
    transport === "kafka" && has(members, "time")
      ? Kafka.toEvent({ headers: { "content-type": contentType.toLowerCase() }, key: members.partitionkey, value: text })
      : new CloudEvent(members, true);
  return [event, attributes];
}

function binary(transport, received, contentType, attributes, body) {
  const headers = Object.fromEntries(Object.entries(attributes).map(([name, value]) => [`ce_${name}`, value]));
  if (transport === "kafka") {
    if (has(attributes, "datacontenttype")) {
      throw new Refused("header ce_datacontenttype: on Kafka that attribute is the header content-type");
    }
    if (contentType !== undefined) {
      attributes.datacontenttype = contentType;
      headers["content-type"] = contentType;
    }
  } else if (transport === "http") {
    if (has(attributes, "datacontenttype")) {
      throw new Refused("header ce-datacontenttype: over HTTP that attribute is the header content-type");
    }
    if (contentType !== undefined) attributes.datacontenttype = contentType;
  } else if (contentType !== undefined) {
    throw new Refused("header Content-Type: on NATS the attribute is the header ce-datacontenttype");
  }
  checkAttributes(attributes);
  const isEmpty = body === null || body.length === 0;
  const isJson = !isEmpty && JSON_DATA.test(attributes.datacontenttype ?? "");
  const json = isJson ? JSON.parse(utf8(body)) : undefined;
  if (transport === "kafka" && !isEmpty) {
    const event = Kafka.toEvent({ headers, key: attributes.partitionkey, value: body });
    return [event, attributes, isJson ? json : event.data];
  }
  if (transport === "http") {
    const event = HTTP.toEvent({ headers: received, body: isEmpty ? undefined : utf8(body) });
    return [event, attributes, isJson ? json : isEmpty ? undefined : body];
  }
  // The SDK's Kafka reader fails without a value, although an event may have no data.
  const data = isEmpty ? undefined : isJson ? json : body;
  return [new CloudEvent({ ...attributes, ...(data === undefined ? {} : { data }) }, true), attributes, data];
}

function judge(message) {
  const transport = message.transport;
  const body = message.body_base64 === null ? null : Buffer.from(message.body_base64, "base64");
  const received = Object.fromEntries(message.headers);
  const [contentType, fromHeaders] = splitHeaders(transport, message.headers);
  const isStructured = transport === "json" || (contentType ?? "").toLowerCase().startsWith("application/cloudevents");
  const read = isStructured ? structured : binary;
  const [event, raw, binaryData] = read(transport, received, contentType, fromHeaders, body);
  if (event.validate() !== true) throw new Refused("the SDK's validation fails");
  const attributes = {};
  const isEncoded = transport === "http" && read === binary;
  for (const [name, value] of Object.entries(event)) {
    if (value === undefined || ["data", "data_base64", "time"].includes(name)) continue;
    attributes[name] = isEncoded && name !== "datacontenttype" ? undoPercent(name, value) : value;
  }
  if (has(raw, "time")) {
    if (Date.parse(event.time) !== Date.parse(raw.time)) throw new Refused("the SDK reads another time");
    attributes.time = raw.time;
  }
  const verdict = { ok: true, mode: read.name, attributes };
  if (read === structured && event.data_base64 !== undefined) {
    verdict.data_base64 = event.data_base64;
  } else {
    const data = read === structured ? event.data : binaryData;
    if (data instanceof Uint8Array) {
      try {
        verdict.data = utf8(data);
      } catch {
        verdict.data_base64 = Buffer.from(data).toString("base64");
      }
    } else if (data !== undefined && data !== null) {
      verdict.data = data;
    }
  }
  return verdict;
}

readline.createInterface({ input: process.stdin, crlfDelay: Infinity }).on("line", (line) => {
  let verdict;
  try {
    verdict = judge(JSON.parse(line));
  } catch (error) {
    // An exception of a reader is a verdict; the judge continues.
    verdict = { ok: false, error: `${error.constructor.name}: ${error.message}` };
  }
  process.stdout.write(`${JSON.stringify(verdict)}\n`);
});
