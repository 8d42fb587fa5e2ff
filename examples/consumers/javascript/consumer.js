// Handles media events from Kafka, each one once.
//
//     npm ci
//     node consumer.js
//
// Environment, with defaults: KAFKA_BROKERS=127.0.0.1:9092 KAFKA_TOPICS=media.vod,media.ims KAFKA_GROUP=media-example

import { CloudEvent, Kafka as Binding } from "cloudevents";
import { Kafka, logLevel } from "kafkajs";

// It forgets at a restart. A service with a database inserts source and id there, in the transaction of its own data:
// see ../python/consumer.py.
const seen = new Set();

// VOD sends this type when all streams of a video have ended, IMS for each sub-job: see `dialect`.
// `status` decides. `data.error` may exist although the work succeeded.
const transcoded = (event) => (event.status === "success" ? "ready" : "not ready");

// Not every review has a verdict, and a later version may add one that this code does not know.
const verdicts = new Map([["pass", "show"], ["block", "hide"]]);
const reviewed = (event) => `${verdicts.get(event.verdict) ?? "ask a person"} (${event.data.reason ?? "no reason"})`;

const handlers = new Map([
  ["com.aliyun.media.TranscodeComplete", transcoded],
  ["com.aliyun.media.AIMediaAuditComplete", reviewed],
  ["com.aliyun.media.CreateAuditComplete", reviewed],
]);

function read(message) {
  const headers = Object.fromEntries(Object.entries(message.headers).map(([name, value]) => [name, String(value)]));
  if (headers["content-type"]?.startsWith("application/cloudevents+json")) {
    // Not `toEvent`: that of this SDK cannot read a structured event without `time`, which is optional.
    return new CloudEvent(JSON.parse(message.value));
  }
  const event = Binding.toEvent({ ...message, headers });
  event.validate();
  return event;
}

function handle(event) {
  const what = `${event.type} ${event.subject} ${event.status}`;
  const handler = handlers.get(event.type);
  if (!handler) return console.log(`unknown type ${what}`);
  const key = JSON.stringify([event.source, event.id]);
  if (seen.has(key)) return console.log(`repeat ${what}`);
  console.log(`handled ${what}: ${handler(event)}`);
  seen.add(key);
}

const { KAFKA_BROKERS = "127.0.0.1:9092", KAFKA_TOPICS = "media.vod,media.ims" } = process.env;
const { KAFKA_GROUP = "media-example" } = process.env;
const kafka = new Kafka({ clientId: KAFKA_GROUP, brokers: KAFKA_BROKERS.split(","), logLevel: logLevel.WARN });
const consumer = kafka.consumer({ groupId: KAFKA_GROUP });
// Leaves the group, so that another consumer gets the partitions at once.
process.once("SIGTERM", () => consumer.disconnect());
await consumer.connect();
await consumer.subscribe({ topics: KAFKA_TOPICS.split(","), fromBeginning: true });
await consumer.run({
  autoCommit: false,
  async eachMessage({ topic, partition, message }) {
    let event;
    try {
      event = read(message);
    } catch (error) {
      console.log(`not a CloudEvent ${topic}/${partition}/${message.offset}: ${error.message}`);
    }
    if (event) handle(event);
    // Only now. If this program ends before, it gets the record again.
    await consumer.commitOffsets([{ topic, partition, offset: String(BigInt(message.offset) + 1n) }]);
  },
});
