//! Tests of the NATS server that the tests use.

use std::time::Duration;

use async_nats::{ConnectOptions, HeaderMap};

use crate::support::nats::{Auth, Nats, NatsOptions, Stored, Tls};
use crate::support::wait::SOON;

async fn publish(nats: &Nats, subject: &str, payload: &str) {
    let mut headers = HeaderMap::new();
    headers.append("ce-id", "1");
    headers.append("ce-id", "2");
    let jetstream = nats.jetstream().await;
    let ack = jetstream.publish_with_headers(subject.to_owned(), headers, payload.to_owned().into()).await.unwrap();
    ack.await.unwrap();
}

#[tokio::test]
async fn messages_come_back_whole_and_in_order() {
    let nats = Nats::shared().await;
    let stream = nats.create_stream("WHOLE", &["whole.>"]).await;
    assert_eq!(nats.messages("WHOLE", 0, SOON).await, []);
    publish(nats, "whole.a", "first").await;
    publish(nats, "whole.deleted", "x").await;
    publish(nats, "whole.b", "").await;
    stream.delete_message(2).await.unwrap();
    let expected = |sequence, subject: &str, payload: &str| Stored {
        sequence,
        subject: subject.to_owned(),
        headers: vec![("ce-id".to_owned(), "1".to_owned()), ("ce-id".to_owned(), "2".to_owned())],
        payload: payload.as_bytes().to_vec(),
    };
    let messages = nats.messages("WHOLE", 2, SOON).await;
    assert_eq!(messages, [expected(1, "whole.a", "first"), expected(3, "whole.b", "")]);
    assert_eq!(messages[0].header("ce-id"), Some("1"));
}

#[tokio::test]
async fn an_outage_leaves_data_and_port() {
    let nats = Nats::start(NatsOptions { max_payload: Some(10_000), ..Default::default() }).await;
    assert_eq!(nats.client().await.server_info().max_payload, 10_000);
    nats.create_stream("OUTAGE", &["outage"]).await;
    publish(&nats, "outage", "before").await;

    let client = nats.client().await;
    nats.stop();
    let flush = tokio::time::timeout(Duration::from_millis(300), client.request("outage", "frozen".into())).await;
    assert!(flush.is_err(), "a frozen server has answered");
    nats.cont();
    nats.messages("OUTAGE", 2, SOON).await;

    let url = nats.url().to_owned();
    nats.kill();
    assert!(nats.connect_options().connect(&url).await.is_err());
    nats.restart().await;
    assert_eq!(nats.url(), url);
    publish(&nats, "outage", "after").await;
    let messages = nats.messages("OUTAGE", 3, SOON).await;
    let payloads: Vec<_> = messages.iter().map(|each| each.payload.as_slice()).collect();
    assert_eq!(payloads, [&b"before"[..], b"frozen", b"after"]);
}

/// Checks that the server accepts a client with the credentials of `nats`, and refuses `stranger`.
async fn check_security(nats: &Nats, stranger: ConnectOptions) {
    nats.create_stream("SECURED", &["secured"]).await;
    publish(nats, "secured", "in").await;
    assert_eq!(nats.messages("SECURED", 1, SOON).await.len(), 1);
    assert!(stranger.connect(nats.url()).await.is_err(), "a stranger was accepted with {nats:?}");
}

#[tokio::test]
async fn each_kind_of_credentials_is_required() {
    for auth in [Auth::UserPassword, Auth::Token, Auth::Nkey, Auth::Credentials] {
        let nats = Nats::start(NatsOptions { auth, ..Default::default() }).await;
        check_security(&nats, ConnectOptions::new()).await;
    }
}

#[tokio::test]
async fn tls_requires_a_trusted_authority() {
    let nats = Nats::start(NatsOptions { tls: Tls::Server, ..Default::default() }).await;
    check_security(&nats, ConnectOptions::new().require_tls(true)).await;
}

#[tokio::test]
async fn mutual_tls_requires_a_client_certificate() {
    let nats = Nats::start(NatsOptions { tls: Tls::Mutual, auth: Auth::Token, ..Default::default() }).await;
    let authority = nats.certificates().unwrap().authority.clone();
    let token = crate::support::nats::TOKEN.to_owned();
    let stranger = ConnectOptions::with_token(token).require_tls(true).add_root_certificates(authority);
    check_security(&nats, stranger).await;
}
