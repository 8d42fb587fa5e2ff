"""Handles media events from Kafka, each one once.

    python3 -m venv venv
    venv/bin/pip install -r requirements.txt
    venv/bin/python consumer.py

Environment, with defaults: KAFKA_BROKERS=127.0.0.1:9092 KAFKA_TOPICS=media.vod,media.ims KAFKA_GROUP=media-example
DATABASE=consumer.db
"""

import os
import signal
import sqlite3
import sys

from cloudevents.core.bindings import kafka
from confluent_kafka import Consumer


def transcoded(event):
    # VOD sends this type when all streams of a video have ended, IMS for each sub-job: see `dialect`.
    # `status` decides. `data.error` may exist although the work succeeded.
    return "ready" if event.get_extension("status") == "success" else "not ready"


def reviewed(event):
    # Not every review has a verdict, and a later version may add one that this code does not know.
    result = {"pass": "show", "block": "hide"}.get(event.get_extension("verdict"), "ask a person")
    return f"{result} ({event.get_data().get('reason', 'no reason')})"


HANDLERS = {
    "com.aliyun.media.TranscodeComplete": transcoded,
    "com.aliyun.media.AIMediaAuditComplete": reviewed,
    "com.aliyun.media.CreateAuditComplete": reviewed,
}


def read(message):
    headers = dict(message.headers() or [])
    # The content type decides the mode. `from_kafka` of this SDK looks for ce_ headers, which structured records have too.
    is_structured = headers.get("content-type", b"").startswith(b"application/cloudevents+json")
    parse = kafka.from_structured_event if is_structured else kafka.from_binary_event
    return parse(kafka.KafkaMessage(headers, None, message.value()))


def handle(event, database):
    what = f"{event.get_type()} {event.get_subject()} {event.get_extension('status')}"
    handler = HANDLERS.get(event.get_type())
    if handler is None:
        return print("unknown type", what, flush=True)
    # One transaction for the id and for what the handler writes: both are stored, or neither is.
    with database:
        insert = "INSERT INTO seen_events (source, id) VALUES (?, ?) ON CONFLICT DO NOTHING"
        if database.execute(insert, (event.get_source(), event.get_id())).rowcount == 0:
            return print("repeat", what, flush=True)
        result = handler(event)
    print(f"handled {what}: {result}", flush=True)


database = sqlite3.connect(os.environ.get("DATABASE", "consumer.db"))
database.execute("CREATE TABLE IF NOT EXISTS seen_events (source TEXT, id TEXT, PRIMARY KEY (source, id))")
consumer = Consumer({
    "bootstrap.servers": os.environ.get("KAFKA_BROKERS", "127.0.0.1:9092"),
    "group.id": os.environ.get("KAFKA_GROUP", "media-example"),
    "auto.offset.reset": "earliest",
    "enable.auto.commit": False,
})
consumer.subscribe(os.environ.get("KAFKA_TOPICS", "media.vod,media.ims").split(","))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
try:
    while True:
        message = consumer.poll(1.0)
        if message is None:
            continue
        if message.error():
            print("Kafka:", message.error(), file=sys.stderr)
            continue
        try:
            event = read(message)
        except Exception as error:
            place = f"{message.topic()}/{message.partition()}/{message.offset()}"
            print(f"not a CloudEvent {place}: {error}", flush=True)
        else:
            handle(event, database)
        # Only now. If this program ends before, it gets the record again.
        consumer.commit(message=message, asynchronous=False)
finally:
    consumer.close()  # leaves the group, so that another consumer gets the partitions at once
