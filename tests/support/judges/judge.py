"""Reads messages like a consumer with the Python CloudEvents SDK, and reports what it reads.

One JSON object a line on standard input:
    {"transport": "kafka" | "nats" | "http" | "json", "headers": [[name, value], ...], "key": ...,
     "body_base64": ... | null}
A header's value is a string, null (none at all) or {"base64": ...} (not UTF-8). One JSON object a line in answer:
    {"ok": true, "mode": "binary" | "structured", "attributes": {...}, "data": ... or "data_base64": ...}
    {"ok": false, "error": "..."}

The content type decides the mode, as the bindings say. The SDK reads and validates the event: with its Kafka binding,
with its HTTP binding, which gets all headers of a request, or for NATS, for which it has no binding, with its JSON format
or its constructor. Before that, this program refuses what the
specification forbids but the SDK accepts, each with its reason. judge.js has the same rules.

    - The SDK invents a missing id, time or specversion, and converts header names to lower case.
    - It does not check the type, length or characters of an attribute's value.
    - Its readers decide the mode by ce_ or ce- headers, which a structured message may have too.
    - It overwrites the attribute partitionkey with the record's key, which is not part of the event. So it gets no key.

"attributes" are those of the SDK, except the time, which is unchanged because every SDK prints its own number of digits.
"""

import base64
import json
import re
import sys
from urllib.parse import urlsplit

from cloudevents.core.bindings import http, kafka
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from dateutil.parser import isoparse

STRUCTURED = "application/cloudevents"
JSON_EVENT = "application/cloudevents+json"
JSON_DATA = re.compile(r"(?i)^[a-z0-9!#$&^_.+-]+/([a-z0-9!#$&^_.-]+\+)?json\s*(;.*)?$")
TIMESTAMP = re.compile(r"(?i)^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$")
NAME = re.compile(r"^[a-z0-9]+$")
# Not allowed in a string: control characters, surrogates, noncharacters.
FORBIDDEN = re.compile(
    "[\u0000-\u001f\u007f-\u009f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr(plane * 0x10000 + last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
    + "]"
)


class Refused(Exception):
    """The message is not a valid CloudEvent, for a reason that the SDK does not check."""


def check_attributes(attributes):
    for name in ("specversion", "id", "source", "type"):
        if name not in attributes:
            raise Refused(f"attribute {name} is missing")
    for name, value in attributes.items():
        if not NAME.match(name):
            raise Refused(f"attribute name {name!r} must contain only a-z and 0-9")
        if isinstance(value, str):
            if value == "":
                raise Refused(f"attribute {name} is empty")
            if FORBIDDEN.search(value):
                raise Refused(f"attribute {name} contains a character that is not allowed")
        elif isinstance(value, bool):
            pass
        elif isinstance(value, int):
            if not -(2**31) <= value < 2**31:
                raise Refused(f"attribute {name} is an integer beyond 32 bits")
        else:
            raise Refused(f"attribute {name} is neither a string nor a boolean nor an integer")
    for name in ("specversion", "id", "source", "type", "datacontenttype", "dataschema", "subject", "time"):
        if name in attributes and not isinstance(attributes[name], str):
            raise Refused(f"attribute {name} isn't a string")
    if attributes["specversion"] != "1.0":
        raise Refused(f"specversion is {attributes['specversion']!r}")
    if "time" in attributes and not TIMESTAMP.match(attributes["time"]):
        raise Refused(f"time {attributes['time']!r} isn't an RFC 3339 timestamp")
    check_uri(attributes, "source")
    check_uri(attributes, "dataschema")
    if "dataschema" in attributes and not urlsplit(attributes["dataschema"]).scheme:
        raise Refused("dataschema isn't an absolute URI")


def check_uri(attributes, name):
    value = attributes.get(name)
    if value is None:
        return
    if not re.match(r"^(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*$", value):
        raise Refused(f"attribute {name} contains a character that is not allowed in a URI")
    try:
        urlsplit(value)
    except ValueError as error:
        raise Refused(f"attribute {name} isn't a URI: {error}") from error


def text_of(name, value):
    if not isinstance(value, str):
        raise Refused(f"header {name} has no value or isn't UTF-8")
    return value


def undo_percent(name, value):
    """A header's value in the bindings of NATS and HTTP: possibly quoted, then percent-encoded exactly once."""
    if value.startswith('"'):
        if len(value) < 2 or not re.match(r'^"(?:[^"\\]|\\.)*"$', value, re.S):
            raise Refused(f"header {name} has an unbalanced quote")
        value = re.sub(r"\\(.)", r"\1", value[1:-1], flags=re.S)
    elif re.search(r'[^\x21-\x7e]|"', value):
        raise Refused(f"header {name} isn't percent-encoded")
    if re.search(r"%(?![0-9A-Fa-f]{2})", value):
        raise Refused(f"header {name} has a bare percent sign")
    octets = re.sub(rb"%(..)", lambda hit: bytes([int(hit[1], 16)]), value.encode("utf-8"))
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused(f"header {name} is not UTF-8 after percent-decoding") from error


def split_headers(transport, headers):
    """The content type, and the attributes in headers, not yet decoded."""
    prefix = "ce_" if transport == "kafka" else "ce-"
    content_type, attributes = None, {}
    for name, value in headers:
        if name.lower() == "content-type":
            if transport == "kafka" and name != "content-type":
                raise Refused(f"header {name}: Kafka's readers look for content-type, in lower case")
            if content_type is not None:
                raise Refused("two content types")
            content_type = text_of(name, value)
        elif name.lower().startswith(prefix):
            attribute = name[len(prefix) :]
            if not name.startswith(prefix):
                raise Refused(f"header {name}: the prefix is {prefix}, in lower case")
            if attribute in attributes:
                raise Refused(f"two headers {name}")
            attributes[attribute] = text_of(name, value)
    if transport in ("nats", "http"):
        attributes = {name: undo_percent(prefix + name, value) for name, value in attributes.items()}
    return content_type, attributes


def no_duplicates(pairs):
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Refused("a JSON object has two members of one name")
    return members


def no_constant(name):
    raise Refused(f"{name} isn't JSON")


def strict_json(body):
    return json.loads(body.decode("utf-8"), object_pairs_hook=no_duplicates, parse_constant=no_constant)


def is_json(datacontenttype):
    return datacontenttype is not None and JSON_DATA.match(datacontenttype) is not None


def structured(transport, headers, content_type, repeated, body):
    if content_type is not None and content_type.split(";")[0].strip().lower() != JSON_EVENT:
        raise Refused(f"content type {content_type}: the format read here is {JSON_EVENT}")
    if body is None:
        raise Refused("a structured event without a body")
    members = strict_json(body)
    if not isinstance(members, dict):
        raise Refused("the body isn't a JSON object")
    if "data" in members and "data_base64" in members:
        raise Refused("both data and data_base64")
    if "data_base64" in members:
        base64.b64decode(members["data_base64"], validate=True)
    attributes = {name: value for name, value in members.items() if name not in ("data", "data_base64")}
    check_attributes(attributes)
    for name, value in repeated.items():
        inside = attributes.get(name)
        inside = str(inside).lower() if isinstance(inside, bool) else inside
        if name == "datacontenttype" or str(inside) != value:
            raise Refused(f"header of attribute {name} says {value!r}, the body {inside!r}")
    if transport == "kafka":
        message = kafka.KafkaMessage(headers={"content-type": content_type.encode()}, key=None, value=body)
        event = kafka.from_structured(message, JSONFormat(), CloudEvent)
    elif transport == "http":
        event = http.from_http(http.HTTPMessage(dict(headers), body), JSONFormat(), CloudEvent)
    else:
        event = JSONFormat().read(CloudEvent, body)
    return event, attributes


def binary(transport, headers, content_type, attributes, body):
    if transport == "kafka":
        if "datacontenttype" in attributes:
            raise Refused("header ce_datacontenttype: on Kafka that attribute is the header content-type")
        wire = {f"ce_{name}": value.encode("utf-8") for name, value in attributes.items()}
        if content_type is not None:
            attributes["datacontenttype"] = content_type
            wire["content-type"] = content_type.encode("utf-8")
    elif transport == "http":
        if "datacontenttype" in attributes:
            raise Refused("header ce-datacontenttype: over HTTP that attribute is the header content-type")
        if content_type is not None:
            attributes["datacontenttype"] = content_type
    elif content_type is not None:
        raise Refused("header Content-Type: on NATS the attribute is the header ce-datacontenttype")
    check_attributes(attributes)
    if body and is_json(attributes.get("datacontenttype")):
        strict_json(body)  # the SDK treats what it cannot parse as text
    if transport == "kafka":
        message = kafka.KafkaMessage(headers=wire, key=None, value=body)
        return kafka.from_binary(message, JSONFormat(), CloudEvent), attributes
    if transport == "http":
        return http.from_http(http.HTTPMessage(dict(headers), body), JSONFormat(), CloudEvent), attributes
    values = dict(attributes)
    if "time" in values:
        values["time"] = isoparse(values["time"])
    return CloudEvent(values, JSONFormat().read_data(body, values.get("datacontenttype"))), attributes


def judge(message):
    transport, body = message["transport"], message["body_base64"]
    body = None if body is None else base64.b64decode(body)
    content_type, from_headers = split_headers(transport, message["headers"])
    is_structured = (content_type or "").lower().startswith(STRUCTURED) or transport == "json"
    read = structured if is_structured else binary
    event, raw = read(transport, message["headers"], content_type, from_headers, body)
    attributes = dict(event.get_attributes())
    attributes.pop("time", None)  # the SDK invents a missing one
    if "time" in raw:
        attributes["time"] = raw["time"]
    verdict = {"ok": True, "mode": read.__name__, "attributes": attributes}
    data = event.get_data()
    if isinstance(data, bytes):
        verdict["data_base64"] = base64.b64encode(data).decode()
    elif data is not None:
        verdict["data"] = data
    return verdict


def main():
    for line in sys.stdin.buffer:
        try:
            verdict = judge(json.loads(line))
        except Exception as error:  # an exception of a reader is a verdict; the judge continues
            verdict = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        print(json.dumps(verdict), flush=True)


main()
