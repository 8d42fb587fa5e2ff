"""Makes the calls of a test with Alibaba's Python SDK.

    driver.py ENDPOINT KEY_ID SECRET TOKEN      TOKEN: '' for a key that needs none

One JSON object a line on standard input, and one in answer:
    {"call": NAME, "queue": NAME, ...}          the calls and their arguments: `CALLS` below; "plain": true to send and
                                                receive bodies as they are, instead of in Base64 as the SDK would
    {"ok": true, "value": ...}
    {"ok": false, "code": ..., "failed": {HANDLE: CODE}}      "failed" after a batch delete that failed in part

Driver.java does the same with the SDK for Java. An empty queue is no error, but null or an empty list, for that SDK
sees it so. Nothing is decided here: what a call gives is what the SDK made of the answer.
"""

import json
import sys

from mns.account import Account
from mns.mns_exception import MNSExceptionBase, MNSServerException
from mns.queue import Message, QueueMeta

META = {
    "visibility_timeout": "visibility_timeout",
    "polling_wait": "polling_wait_seconds",
    "delay": "delay_seconds",
    "retention": "message_retention_period",
}


def meta_of(arguments):
    meta = QueueMeta()
    for name, attribute in META.items():
        if name in arguments:
            setattr(meta, attribute, arguments[name])
    return meta


def attributes(queue, _):
    meta = queue.get_attributes()
    values = {name: getattr(meta, attribute) for name, attribute in META.items()}
    values["active"] = meta.active_messages
    values["inactive"] = meta.inactive_messages
    values["delayed"] = meta.delay_messages
    return values


def message_of(arguments, body):
    message = Message(body)
    if "delay" in arguments:
        message.set_delayseconds(arguments["delay"])
    if "priority" in arguments:
        message.set_priority(arguments["priority"])
    return message


def sent(message):
    return {"id": message.message_id, "md5": message.message_body_md5, "handle": message.receipt_handle or None}


def received(message, is_peek=False):
    body = message.message_body
    value = {
        "id": message.message_id,
        "body": body.decode("utf-8") if isinstance(body, bytes) else body,
        "md5": message.message_body_md5,
        "dequeue_count": message.dequeue_count,
        "enqueued": message.enqueue_time,
        "first_dequeued": message.first_dequeue_time,
        "priority": message.priority,
    }
    if not is_peek:
        value["handle"] = message.receipt_handle
        value["next_visible"] = message.next_visible_time
    return value


def or_empty(empty, call):
    try:
        return call()
    except MNSServerException as error:
        if error.type == "MessageNotExist":
            return empty
        raise


def change_visibility(queue, arguments):
    changed = queue.change_message_visibility(arguments["handle"], arguments["seconds"])
    return {"handle": changed.receipt_handle, "next_visible": int(changed.next_visible_time)}


CALLS = {
    "create": lambda queue, arguments: queue.create(meta_of(arguments)),
    "delete_queue": lambda queue, _: queue.delete(),
    "attributes": attributes,
    "set_attributes": lambda queue, arguments: queue.set_attributes(meta_of(arguments)),
    "send": lambda queue, arguments: sent(queue.send_message(message_of(arguments, arguments["body"]))),
    "batch_send": lambda queue, arguments: [
        sent(message)
        for message in queue.batch_send_message([message_of(arguments, body) for body in arguments["bodies"]])
    ],
    "receive": lambda queue, arguments: or_empty(
        None, lambda: received(queue.receive_message(arguments.get("wait", -1)))
    ),
    "batch_receive": lambda queue, arguments: or_empty(
        [],
        lambda: [
            received(message)
            for message in queue.batch_receive_message(arguments["max"], arguments.get("wait", -1))
        ],
    ),
    "peek": lambda queue, _: or_empty(None, lambda: received(queue.peek_message(), is_peek=True)),
    "batch_peek": lambda queue, arguments: or_empty(
        [], lambda: [received(message, is_peek=True) for message in queue.batch_peek_message(arguments["max"])]
    ),
    "delete": lambda queue, arguments: queue.delete_message(arguments["handle"]),
    "batch_delete": lambda queue, arguments: queue.batch_delete_message(arguments["handles"]),
    "change_visibility": change_visibility,
}


def list_queues(account, arguments):
    urls, next_marker = account.list_queue(
        arguments.get("prefix", ""), arguments.get("max", -1), arguments.get("marker", "")
    )
    return {"urls": urls, "marker": next_marker or None}


def answer(account, request):
    if request["call"] == "list":
        return list_queues(account, request)
    queue = account.get_queue(request["queue"])
    queue.set_encoding(not request.get("plain", False))
    return CALLS[request["call"]](queue, request)


def main():
    endpoint, key_id, secret, token = sys.argv[1:]
    account = Account(endpoint, key_id, secret, token)
    for line in sys.stdin:
        try:
            verdict = {"ok": True, "value": answer(account, json.loads(line))}
        except MNSExceptionBase as error:
            failed = {item["ReceiptHandle"]: item["ErrorCode"] for item in getattr(error, "sub_errors", None) or []}
            verdict = {"ok": False, "code": error.type, "failed": failed}
        print(json.dumps(verdict), flush=True)


main()
