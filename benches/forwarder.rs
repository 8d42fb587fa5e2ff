//! What the bridge is compared with: a service with the same libraries that only forwards.
//!
//! It publishes the body of a POST unchanged, without key or headers, and answers 200 when the bus has acknowledged it:
//! Kafka with acks=all, or JetStream. The settings of the clients for durability and speed must be those of
//! src/output/, otherwise the comparison is worthless.
//!
//! It is the benchmark's own binary, started again with [`ARGUMENT`]. With the allocator of the bridge it is another one.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use async_nats::ConnectOptions;
use async_nats::jetstream::{self, message::PublishMessage};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::serve::ListenerExt;
use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};

use crate::Bus;

/// The argument that makes this binary a forwarder. The bus, its address, the topic and the listen address follow it.
pub(crate) const ARGUMENT: &str = "forward";

/// The command that starts a forwarder: the program itself, or another one that includes this.
#[allow(dead_code)] // one of the two that include this is only started
pub(crate) fn command(program: &Path, bus: Bus, bus_address: &str, topic: &str, listen: SocketAddr) -> Command {
    let mut command = Command::new(program);
    command.args([ARGUMENT, bus.name(), bus_address, topic, &listen.to_string()]);
    command
}

/// Forwards until it is killed.
pub(crate) fn run(arguments: &[String]) {
    let [bus, bus_address, topic, listen] = arguments else {
        panic!("expected BUS ADDRESS TOPIC LISTEN after `{ARGUMENT}`")
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let router = match Bus::from_name(bus).expect("the name of a bus") {
            Bus::Kafka => {
                let kafka = Kafka::new(bus_address, topic);
                Router::new().route("/callbacks", post(to_kafka)).with_state(kafka)
            }
            Bus::Jetstream => {
                let nats = Jetstream::connect(bus_address, topic).await;
                Router::new().route("/callbacks", post(to_jetstream)).with_state(nats)
            }
        };
        let listener = tokio::net::TcpListener::bind(listen).await.expect("the address is free");
        let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
        axum::serve(listener, router).await.expect("serving never ends");
    });
}

#[derive(Clone)]
struct Kafka {
    producer: FutureProducer,
    topic: String,
}

impl Kafka {
    fn new(brokers: &str, topic: &str) -> Kafka {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("client.id", "forwarder")
            .set("queue.buffering.max.kbytes", "65536")
            .set("reconnect.backoff.max.ms", "2000")
            .set("log.connection.close", "false")
            .set("linger.ms", "1")
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("message.timeout.ms", "1000")
            .create()
            .expect("properties that librdkafka accepts");
        Kafka { producer, topic: topic.to_owned() }
    }
}

async fn to_kafka(State(kafka): State<Kafka>, body: Bytes) -> StatusCode {
    let record: FutureRecord<'_, (), [u8]> = FutureRecord::to(&kafka.topic).payload(&body);
    let Ok(delivery) = kafka.producer.send_result(record) else { return StatusCode::SERVICE_UNAVAILABLE };
    match delivery.await {
        Ok(Ok(_)) => StatusCode::OK,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

#[derive(Clone)]
struct Jetstream {
    context: jetstream::Context,
    subject: String,
}

impl Jetstream {
    async fn connect(server: &str, subject: &str) -> Jetstream {
        let client = ConnectOptions::new()
            .name("forwarder")
            .connection_timeout(Duration::from_secs(5))
            .ping_interval(Duration::from_secs(10))
            .connect(server)
            .await
            .expect("a server that answers");
        Jetstream { context: jetstream::new(client), subject: subject.to_owned() }
    }
}

async fn to_jetstream(State(nats): State<Jetstream>, body: Bytes) -> StatusCode {
    let message = PublishMessage::build().payload(body);
    let Ok(ack) = nats.context.send_publish(nats.subject, message).await else {
        return StatusCode::SERVICE_UNAVAILABLE;
    };
    match ack.await {
        Ok(_) => StatusCode::OK,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}
