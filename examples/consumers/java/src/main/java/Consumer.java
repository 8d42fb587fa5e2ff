import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import io.cloudevents.CloudEvent;
import io.cloudevents.kafka.KafkaMessageFactory;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.time.Duration;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.Function;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.WakeupException;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/**
 * Handles media events from Kafka, each one once.
 *
 * <pre>
 *     mvn package
 *     java -cp 'target/classes:target/libs/*' Consumer
 * </pre>
 *
 * Environment, with defaults: KAFKA_BROKERS=127.0.0.1:9092 KAFKA_TOPICS=media.vod,media.ims KAFKA_GROUP=media-example
 */
public final class Consumer {
    record Key(String source, String id) {}

    // It forgets at a restart. A service with a database inserts source and id there, in the transaction of its own
    // data: see ../python/consumer.py.
    static final Set<Key> SEEN = new HashSet<>();

    static final Map<String, Function<CloudEvent, String>> HANDLERS = Map.of(
            "com.aliyun.media.TranscodeComplete", Consumer::transcoded,
            "com.aliyun.media.AIMediaAuditComplete", Consumer::reviewed,
            "com.aliyun.media.CreateAuditComplete", Consumer::reviewed);

    // VOD sends this type when all streams of a video have ended, IMS for each sub-job: see `dialect`.
    static String transcoded(CloudEvent event) {
        // `status` decides. `data.error` may exist although the work succeeded.
        return "success".equals(event.getExtension("status")) ? "ready" : "not ready";
    }

    static String reviewed(CloudEvent event) {
        // Not every review has a verdict, and a later version may add one that this code does not know.
        var verdict = String.valueOf(event.getExtension("verdict"));
        var result = Map.of("pass", "show", "block", "hide").getOrDefault(verdict, "ask a person");
        return result + " (" + data(event).path("reason").asText("no reason") + ")";
    }

    static JsonNode data(CloudEvent event) {
        try {
            return new ObjectMapper().readTree(event.getData().toBytes());
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
    }

    static void handle(CloudEvent event) {
        var what = event.getType() + " " + event.getSubject() + " " + event.getExtension("status");
        var key = new Key(event.getSource().toString(), event.getId());
        var handler = HANDLERS.get(event.getType());
        if (handler == null) {
            System.out.println("unknown type " + what);
        } else if (SEEN.contains(key)) {
            System.out.println("repeat " + what);
        } else {
            System.out.println("handled " + what + ": " + handler.apply(event));
            SEEN.add(key);
        }
    }

    static void receive(ConsumerRecord<byte[], byte[]> record) {
        CloudEvent event;
        try {
            event = KafkaMessageFactory.createReader(record).toEvent();
        } catch (RuntimeException error) {
            var place = record.topic() + "/" + record.partition() + "/" + record.offset();
            System.out.println("not a CloudEvent " + place + ": " + error.getMessage());
            return;
        }
        handle(event);
    }

    public static void main(String[] arguments) {
        var settings = Map.<String, Object>of(
                "bootstrap.servers", System.getenv().getOrDefault("KAFKA_BROKERS", "127.0.0.1:9092"),
                "group.id", System.getenv().getOrDefault("KAFKA_GROUP", "media-example"),
                "auto.offset.reset", "earliest",
                "enable.auto.commit", false);
        var topics = System.getenv().getOrDefault("KAFKA_TOPICS", "media.vod,media.ims");
        // With the SDK's CloudEventDeserializer, `poll` would fail at a record that is not an event, again and again.
        var bytes = new ByteArrayDeserializer();
        var main = Thread.currentThread();
        try (var consumer = new KafkaConsumer<>(settings, bytes, bytes)) {
            Runtime.getRuntime().addShutdownHook(new Thread(() -> {
                consumer.wakeup();
                try {
                    main.join();
                } catch (InterruptedException ignored) {
                }
            }));
            consumer.subscribe(List.of(topics.split(",")));
            while (true) {
                for (var record : consumer.poll(Duration.ofSeconds(1))) {
                    receive(record);
                    // Only now. If this program ends before, it gets the record again.
                    var partition = new TopicPartition(record.topic(), record.partition());
                    consumer.commitSync(Map.of(partition, new OffsetAndMetadata(record.offset() + 1)));
                }
            }
        } catch (WakeupException stop) {
            // SIGTERM. Closing has left the group, so another consumer gets the partitions at once.
        }
    }
}
