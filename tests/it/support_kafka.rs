//! Tests of the Kafka broker that the tests use.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};

use crate::support::kafka::{Kafka, KafkaOptions, Mechanism, Received, Security};
use crate::support::wait::SOON;

async fn send(config: &ClientConfig, topic: &str, payload: Option<&[u8]>) -> Result<(), KafkaError> {
    let producer: FutureProducer = config.clone().set("message.timeout.ms", "10000").create()?;
    let headers = OwnedHeaders::new()
        .insert(Header { key: "ce_id", value: Some("1") })
        .insert(Header { key: "empty", value: None::<&str> });
    let mut record = FutureRecord::to(topic).key("key").headers(headers);
    record.payload = payload;
    producer.send(record, Duration::ZERO).await.map(|_| ()).map_err(|(error, _)| error)
}

#[tokio::test]
async fn records_come_back_whole_and_in_order() {
    let kafka = Kafka::shared().await;
    kafka.create_topic("whole", 2, &[("cleanup.policy", "compact")]).await;
    send(&kafka.client_config(), "whole", Some(b"first")).await.unwrap();
    send(&kafka.client_config(), "whole", None).await.unwrap();
    let records = kafka.consume("whole", 2, SOON).await;
    let expected = |offset, payload: Option<&[u8]>| Received {
        partition: records[0].partition,
        offset,
        key: Some(b"key".to_vec()),
        headers: vec![("ce_id".to_owned(), Some(b"1".to_vec())), ("empty".to_owned(), None)],
        payload: payload.map(<[u8]>::to_vec),
    };
    assert_eq!(records, [expected(0, Some(b"first")), expected(1, None)]);
    assert_eq!(records[0].header("ce_id"), Some("1"));
    assert_eq!(kafka.consume("no-such-topic", 0, SOON).await, []);
}

#[tokio::test]
async fn an_outage_leaves_data_and_port() {
    let options = KafkaOptions { auto_create_topics: false, message_max_bytes: Some(10_000), ..Default::default() };
    let kafka = Kafka::start(options).await;
    let config = kafka.client_config();
    // librdkafka waits half a minute for an unknown topic to appear. Here it must be unknown at once.
    let mut hasty = config.clone();
    hasty.set("topic.metadata.propagation.max.ms", "0");
    let unknown = send(&hasty, "unknown", Some(b"x")).await.unwrap_err();
    assert_eq!(unknown.rdkafka_error_code(), Some(RDKafkaErrorCode::UnknownTopicOrPartition));
    kafka.create_topic("outage", 1, &[]).await;
    let large = send(&config, "outage", Some(&[0; 20_000])).await.unwrap_err();
    assert_eq!(large.rdkafka_error_code(), Some(RDKafkaErrorCode::MessageSizeTooLarge));
    send(&config, "outage", Some(b"before")).await.unwrap();

    kafka.stop();
    let mut impatient = config.clone();
    impatient.set("message.timeout.ms", "1000");
    let producer: FutureProducer = impatient.create().unwrap();
    let frozen = producer.send(FutureRecord::<(), _>::to("outage").payload("lost"), Duration::ZERO).await;
    assert_eq!(frozen.unwrap_err().0.rdkafka_error_code(), Some(RDKafkaErrorCode::MessageTimedOut));
    drop(producer);
    kafka.cont();
    send(&config, "outage", Some(b"between")).await.unwrap();

    let brokers = kafka.brokers().to_owned();
    kafka.kill();
    assert!(tokio::net::TcpStream::connect(&brokers).await.is_err());
    kafka.restart().await;
    assert_eq!(kafka.brokers(), brokers);
    send(&config, "outage", Some(b"after")).await.unwrap();
    let records = kafka.consume("outage", 3, SOON).await;
    let payloads: Vec<_> = records.iter().map(|each| each.payload.as_deref().unwrap()).collect();
    assert_eq!(payloads, [&b"before"[..], b"between", b"after"]);
}

/// Checks that the broker accepts a client with all settings, and refuses one in which the given setting is missing or
/// wrong.
async fn check_security(security: Security, setting: &str, wrong: Option<&str>) {
    let kafka = Kafka::start(KafkaOptions { security, ..Default::default() }).await;
    send(&kafka.client_config(), "secured", Some(b"in")).await.unwrap();
    assert_eq!(kafka.consume("secured", 1, SOON).await.len(), 1);
    let mut config = kafka.client_config();
    match wrong {
        Some(value) => config.set(setting, value),
        None => config.remove(setting),
    };
    config.set("message.timeout.ms", "1500");
    let producer: FutureProducer = config.create().unwrap();
    let sent = producer.send(FutureRecord::<(), _>::to("secured").payload("out"), Duration::ZERO).await;
    assert_eq!(sent.unwrap_err().0.rdkafka_error_code(), Some(RDKafkaErrorCode::MessageTimedOut));
}

#[tokio::test]
async fn tls_requires_a_trusted_authority() {
    check_security(Security::Tls, "ssl.ca.location", None).await;
}

#[tokio::test]
async fn mutual_tls_requires_a_client_certificate() {
    // librdkafka needs key and certificate together; a plaintext client has neither.
    check_security(Security::MutualTls, "security.protocol", Some("plaintext")).await;
}

#[tokio::test]
async fn scram_within_tls_requires_the_password() {
    check_security(Security::SaslTls(Mechanism::ScramSha512), "sasl.password", Some("wrong")).await;
}

#[tokio::test]
async fn plain_requires_the_password() {
    check_security(Security::Sasl(Mechanism::Plain), "sasl.password", Some("wrong")).await;
}
