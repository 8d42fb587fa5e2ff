//! Callbacks by HTTP: authorization, answers, limits on time and number, and how the input stops.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::support::bridge::{
    Client, KEY, TestBridge, URL, callback, headers_signed_at, now, raw, signed_head, signed_headers,
};
use crate::support::certificates::Certificates;
use crate::support::config::{Config, Route};
use crate::support::eventually;
use crate::support::http_receiver::{Receiver, Reply};
use crate::support::wait::{SOON, let_pass};

/// A bridge that needs no broker: it drops every event, which is answered with 200 too. `http` is set in the HTTP
/// input.
fn config(http: &str) -> Config {
    Config::http()
        .set(&format!("[inputs.http]\n{http}"))
        .output("console", "console", &[""; 0])
        .route(Route::new("all").set("drop = true"))
}

async fn dropping(http: &str) -> TestBridge {
    TestBridge::start(&config(http)).await
}

#[tokio::test]
async fn a_signed_callback_is_answered_with_200_and_an_empty_body() {
    let bridge = dropping("").await;
    for family in ["VOD", "ICE"] {
        let answer = bridge.post_with(callback("a"), &signed_headers(family)).await;
        assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 0), "{answer:?}");
    }
    assert_eq!(bridge.metric(r#"apsara_bridge_callbacks_total{input="http",outcome="dropped"}"#), 1.0);
    assert_eq!(bridge.metric(r#"apsara_bridge_callbacks_total{input="http",outcome="duplicate"}"#), 1.0);
    assert_eq!(bridge.stop().await, 0);
}

#[tokio::test]
async fn errors_are_answered_with_problem_documents() {
    let bridge = dropping("max_body = '1KiB'").await;
    let signed = signed_headers("VOD");
    let with = |name: &str, value: &str| {
        let mut headers = signed.clone();
        headers.push((name.to_owned(), value.to_owned()));
        headers
    };
    let mut client = Client::connect(bridge.input).await;
    let mut told = Vec::new();
    for (status, problem, answer) in [
        (404, "no-such-path", client.post("/elsewhere", "", &signed).await),
        (405, "method-not-allowed", client.request("GET", "/callbacks", "", &signed).await),
        (401, "not-signed", client.post("/callbacks", callback("a"), &[]).await),
        (
            401,
            "signature-stale",
            client.post("/callbacks", callback("a"), &headers_signed_at("VOD", URL, now() - 400, KEY)).await,
        ),
        (
            401,
            "signature-from-future",
            client.post("/callbacks", callback("a"), &headers_signed_at("ICE", URL, now() + 400, KEY)).await,
        ),
        (
            401,
            "signature-wrong",
            client.post("/callbacks", callback("a"), &headers_signed_at("VOD", URL, now(), "OtherKey1")).await,
        ),
        (
            401,
            "signed-for-another-url",
            client
                .post(
                    "/callbacks",
                    callback("a"),
                    &headers_signed_at("VOD", "http://media.example.com/callbacks", now(), KEY),
                )
                .await,
        ),
        (
            401,
            "signature-malformed",
            client.post("/callbacks", callback("a"), &[("X-VOD-SIGNATURE".to_owned(), "00".to_owned())]).await,
        ),
        (415, "encoding-not-supported", client.post("/callbacks", "x", &with("content-encoding", "gzip")).await),
        (400, "not-a-callback", client.post("/callbacks", "hello", &signed).await),
        (400, "not-a-callback", client.post("/callbacks", r#"{"State":"Success","JobId":"1"}"#, &signed).await),
        (413, "body-too-large", client.post("/callbacks", vec![b' '; 1025], &signed).await),
    ] {
        let (slug, detail) = answer.problem();
        assert_eq!((answer.status.as_u16(), slug.as_str()), (status, problem), "{detail}");
        assert!(!detail.contains(KEY) && !String::from_utf8_lossy(&answer.body).contains(KEY));
        if status == 405 {
            assert_eq!(answer.headers["allow"], "POST");
        }
        assert_eq!(answer.headers["connection"], "close");
        told.push(detail);
    }
    assert_eq!(told[9], "not valid JSON at byte 0: a value was expected");
    assert!(told[10].contains("`EventType` is missing; the body looks like a message of ApsaraVideo Media Processing"));
    assert_eq!(bridge.metric(r#"apsara_bridge_unauthorized_total{endpoint="/callbacks",reason="not_signed"}"#), 1.0);
    assert_eq!(bridge.metric(r#"apsara_bridge_callbacks_total{input="http",outcome="not_accepted"}"#), 12.0);
    assert_eq!(bridge.metric(r#"apsara_bridge_not_accepted_total{input="http",reason="body_too_large"}"#), 1.0);
    assert_eq!(bridge.metric(r#"apsara_bridge_not_accepted_total{input="http",reason="not_a_callback"}"#), 2.0);
    bridge.stop().await;
}

#[tokio::test]
async fn a_body_of_unknown_length_is_limited_while_it_is_received() {
    let bridge = dropping("max_body = '1KiB'").await;
    let head = signed_head();
    let chunk = format!("400\r\n{}\r\n", "x".repeat(1024));
    let request = format!("{head}transfer-encoding: chunked\r\n\r\n{}0\r\n\r\n", chunk.repeat(3));
    let answer = raw(bridge.input, &request).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    bridge.stop().await;
}

#[tokio::test]
async fn connections_are_kept_alive() {
    let bridge = dropping("").await;
    let mut client = Client::connect(bridge.input).await;
    for id in 0..100 {
        let answer = client.post("/callbacks", callback(&id.to_string()), &signed_headers("VOD")).await;
        assert_eq!(answer.status.as_u16(), 200);
        assert!(!answer.headers.contains_key("connection"));
    }
    bridge.stop().await;
}

#[tokio::test]
async fn slow_requests_are_ended_with_408() {
    let bridge = dropping("header_timeout = '300ms'\nbody_timeout = '300ms'").await;
    let head = signed_head();
    let slow_head = raw(bridge.input, "POST /callbacks HTTP/1.1\r\nhost: x\r\n").await;
    assert!(slow_head.starts_with("HTTP/1.1 408 "), "{slow_head}");
    let body = format!("{head}content-length: 10\r\n\r\n{{");
    let slow_body = raw(bridge.input, &body).await;
    assert!(slow_body.starts_with("HTTP/1.1 408 "), "{slow_body}");
    assert_eq!(raw(bridge.input, "").await, "", "a connection without a request is closed without an answer");
    assert_eq!(bridge.metric(r#"apsara_bridge_not_accepted_total{input="http",reason="request_timeout"}"#), 2.0);

    // A connection that is only idle, and a slow head on a connection that was used before.
    let mut stream = TcpStream::connect(bridge.input).await.expect("the bridge listens");
    let callback = callback("a");
    let good = format!("{head}content-length: {}\r\n\r\n{callback}", callback.len());
    let mut answer = [0; 512];
    for round in 0..2 {
        stream.write_all(good.as_bytes()).await.expect("written");
        let length = stream.read(&mut answer).await.expect("read");
        assert!(answer[..length].starts_with(b"HTTP/1.1 200 "), "round {round}");
        if round == 0 {
            // Longer than a head may take: an idle connection is not a slow one.
            let_pass(Duration::from_millis(700)).await;
        }
    }
    stream.write_all(b"POST /call").await.expect("written");
    let length = stream.read(&mut answer).await.expect("read");
    assert!(answer[..length].starts_with(b"HTTP/1.1 408 "));
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_that_closes_its_side_gets_its_answer() {
    let bridge = dropping("").await;
    for number in 0..200 {
        let body = callback(&number.to_string());
        let mut stream = TcpStream::connect(bridge.input).await.expect("the bridge listens");
        let head = format!("{}content-length: {}\r\n", signed_head(), body.len());
        let close = if number % 2 == 0 { "" } else { "connection: close\r\n" };
        let request = format!("{head}{close}\r\n{body}");
        let (begin, end) = request.split_at(request.len() - number % 10);
        stream.write_all(begin.as_bytes()).await.expect("written");
        stream.write_all(end.as_bytes()).await.expect("written");
        stream.shutdown().await.expect("closed");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("the answer, and then the end");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{number}: {answer:?}");
    }
    assert_eq!(bridge.outcomes("http", "dropped"), 200.0);
    bridge.stop().await;
}

/// Opens a request whose body never ends, and waits until its body is expected.
async fn occupy(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("the bridge listens");
    let head = signed_head();
    let head = format!("{head}expect: 100-continue\r\ncontent-length: 10\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("written");
    let mut answer = [0; 64];
    let length = stream.read(&mut answer).await.expect("read");
    assert!(answer[..length].starts_with(b"HTTP/1.1 100 "), "the signature is valid, and the body is requested");
    stream
}

/// A bridge whose only receiver does not answer, until a test says so.
async fn waiting(http: &str) -> (TestBridge, Receiver) {
    let receiver = Receiver::start().await;
    receiver.answer(Reply::Never);
    let config = Config::http()
        .set(&format!("[inputs.http]\n{http}\n[delivery]\ndeadline = '2s'"))
        .http_output("web", &receiver.url())
        .route(Route::new("all").set("to = { output = 'web' }"));
    (TestBridge::start_connected(&config).await, receiver)
}

#[tokio::test]
async fn too_many_requests_are_refused() {
    let (bridge, receiver) = waiting("max_in_flight = 1").await;
    let first = async {
        assert_eq!(bridge.post(callback("a")).await.problem().0, "refused", "the receiver does not answer");
    };
    let second = async {
        bridge.wait_metric("apsara_bridge_in_flight", |value| value == 1.0).await;
        let answer = bridge.post(callback("b")).await;
        assert_eq!((answer.status.as_u16(), answer.problem().0.as_str()), (503, "too-many-requests"));
        assert_eq!(answer.headers["retry-after"], "1");
    };
    tokio::join!(first, second);
    receiver.answer(Reply::status(202));
    bridge.accepted("c").await;
    bridge.stop().await;
}

#[tokio::test]
async fn a_body_that_does_not_come_takes_nothing_from_others() {
    let bridge = dropping("max_in_flight = 1").await;
    let occupants = [occupy(bridge.input).await, occupy(bridge.input).await];
    assert_eq!(bridge.post(callback("a")).await.status.as_u16(), 200);
    drop(occupants);
    bridge.stop().await;
}

#[tokio::test]
async fn a_new_connection_is_refused_only_if_all_wait_for_an_outcome() {
    let (bridge, receiver) = waiting("max_connections = 1").await;
    let first = async {
        assert_eq!(bridge.post(callback("a")).await.problem().0, "refused", "the receiver does not answer");
    };
    let second = async {
        bridge.wait_metric("apsara_bridge_in_flight", |value| value == 1.0).await;
        let answer = raw(bridge.input, "").await;
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("too-many-requests"), "{answer}");
    };
    tokio::join!(first, second);
    assert_eq!(bridge.metric(r#"apsara_bridge_connections_lost_total{listener="http",reason="no_room"}"#), 1.0);
    receiver.answer(Reply::status(202));
    bridge.accepted("a").await;
    let mut occupant = Client::connect(bridge.input).await;
    assert_eq!(occupant.post("/callbacks", callback("b"), &signed_headers("VOD")).await.status.as_u16(), 200);
    assert_eq!(bridge.post(callback("c")).await.status.as_u16(), 200, "an idle connection goes for a new one");
    bridge.stop().await;
}

#[tokio::test]
async fn an_address_can_have_a_limit_of_connections() {
    let bridge = dropping("max_connections_per_address = 2").await;
    let occupants = [occupy(bridge.input).await, occupy(bridge.input).await];
    let answer = raw(bridge.input, "").await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("of this address"), "{answer}");
    drop(occupants);
    bridge.accepted("a").await;
    bridge.stop().await;
}

#[tokio::test]
async fn a_request_has_one_host_and_a_bounded_head() {
    let bridge = dropping("").await;
    let callback = callback("a");
    let head = |host: &str| {
        let signature: String =
            signed_headers("VOD").into_iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        format!(
            "POST /callbacks HTTP/1.1\r\n{host}{signature}content-length: {}\r\nconnection: close\r\n",
            callback.len()
        )
    };
    for (hosts, status) in
        [("host: x\r\n", 200), ("", 400), ("host: x\r\nhost: y\r\n", 400), ("host: x\r\nHost: x\r\n", 400)]
    {
        let answer = raw(bridge.input, &format!("{}\r\n{callback}", head(hosts))).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{hosts}: {answer}");
    }
    for (bytes, status) in [(12_000, 200), (17_000, 431), (40_000, 431), (200_000, 431)] {
        let answer =
            raw(bridge.input, &format!("{}x: {}\r\n\r\n{callback}", head("host: x\r\n"), "y".repeat(bytes))).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{bytes}: {answer}");
    }
    let probe = raw(bridge.admin, "GET /healthz HTTP/1.1\r\nconnection: close\r\n\r\n").await;
    assert!(probe.starts_with("HTTP/1.1 400 "), "{probe}");
    bridge.stop().await;
}

#[tokio::test]
async fn a_stop_finishes_requests_in_flight_and_refuses_new_ones() {
    let mut bridge = dropping("").await;
    let mut occupant = occupy(bridge.input).await;
    let mut idle = Client::connect(bridge.input).await;
    assert_eq!(idle.post("/callbacks", callback("a"), &signed_headers("VOD")).await.status.as_u16(), 200);
    bridge.begin_stop();
    eventually("new requests are refused", SOON, async || {
        let answer = bridge.post(callback("b")).await;
        (answer.status.as_u16() == 503).then(|| {
            assert_eq!(answer.problem().0, "stopping");
            assert_eq!(answer.headers["connection"], "close");
        })
    })
    .await;
    occupant.write_all(b"0123456789").await.expect("written");
    let mut answer = Vec::new();
    occupant.read_to_end(&mut answer).await.expect("read");
    assert!(answer.starts_with(b"HTTP/1.1 400 "), "the request in flight gets its answer");
    assert_eq!(bridge.stop().await, 0);
}

#[tokio::test]
async fn a_key_in_a_file_can_change_without_a_restart() {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(b"OldKey1\n").expect("written");
    let bridge = TestBridge::start(&config("").keys(&format!("[{{ file = '{}' }}]", file.path().display()))).await;
    let status = async |key: &str| {
        bridge.post_with(callback("a"), &headers_signed_at("VOD", URL, now(), key)).await.status.as_u16()
    };
    assert_eq!((status("OldKey1").await, status("NewKey2").await), (200, 401));
    std::fs::write(file.path(), "NewKey2").expect("written");
    eventually("the new key is read", SOON, async || (status("NewKey2").await == 200).then_some(())).await;
    assert_eq!(status("OldKey1").await, 401);
    bridge.stop().await;
}

/// Posts a signed callback over TLS, with a certificate and its key if there is one. Returns the status.
async fn post_over_tls(
    address: SocketAddr,
    authority: &Path,
    client: Option<(&Path, &Path)>,
) -> Result<u16, Box<dyn std::error::Error>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority).expect("a certificate")).expect("an authority");
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("protocol versions")
        .with_root_certificates(roots);
    let config = match client {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = vec![CertificateDer::from_pem_file(certificate).expect("a certificate")];
            let key = PrivateKeyDer::from_pem_file(key).expect("a key");
            config.with_client_auth_cert(chain, key).expect("they fit")
        }
    };
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").expect("a name");
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let body = callback("a");
    let request = format!("{}content-length: {}\r\nconnection: close\r\n\r\n{body}", signed_head(), body.len());
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer.split(' ').nth(1).ok_or("no answer")?.parse()?)
}

#[tokio::test]
async fn clients_can_be_required_to_show_a_certificate() {
    let (folder, other) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let (ours, theirs) = (Certificates::make(folder.path()), Certificates::make(other.path()));
    let authority = folder.path().join("clients.pem");
    std::fs::copy(&ours.authority, &authority).expect("copied");
    let file = |path: &Path| path.display().to_string();
    let bridge = dropping(&format!(
        "tls = {{ cert_file = '{}', key_file = '{}', client_ca_file = '{}' }}",
        file(&ours.server),
        file(&ours.server_key),
        file(&authority),
    ))
    .await;
    let post = async |client| post_over_tls(bridge.input, &ours.authority, client).await;
    let (ours_shown, theirs_shown) =
        (Some((&*ours.client, &*ours.client_key)), Some((&*theirs.client, &*theirs.client_key)));
    assert_eq!(post(ours_shown).await.expect("a TLS connection"), 200);
    assert!(post(None).await.is_err(), "a client without a certificate");
    assert!(post(theirs_shown).await.is_err(), "a certificate of another authority");
    assert_eq!(
        bridge.metric(r#"apsara_bridge_connections_lost_total{listener="http",reason="handshake_failed"}"#),
        2.0
    );
    std::fs::copy(&theirs.authority, &authority).expect("copied");
    eventually("the new authority is known", SOON, async || {
        post(theirs_shown).await.ok().filter(|status| *status == 200).map(|_| ())
    })
    .await;
    assert!(post(ours_shown).await.is_err(), "the old authority is not trusted any more");
    let expiry = format!(r#"apsara_bridge_certificate_expiry_timestamp_seconds{{file="{}"}}"#, file(&ours.server));
    bridge.wait_metric(&expiry, |time| (now() as f64..now() as f64 + 90_000.0).contains(&time)).await;
    assert!(!bridge.metrics().contains(".key\"}"), "a key does not expire");
    bridge.stop().await;
}

#[tokio::test]
async fn https_works_and_the_certificate_can_be_renewed_without_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let certificates = Certificates::make(folder.path());
    let (cert, key) = (folder.path().join("serving.pem"), folder.path().join("serving.key"));
    std::fs::copy(&certificates.server, &cert).expect("copied");
    std::fs::copy(&certificates.server_key, &key).expect("copied");
    let tls = format!("tls = {{ cert_file = '{}', key_file = '{}' }}", cert.display(), key.display());
    let bridge = dropping(&tls).await;
    let post = async |authority: &Path| post_over_tls(bridge.input, authority, None).await;
    assert_eq!(post(&certificates.authority).await.expect("a TLS connection"), 200);
    let other = tempfile::tempdir().expect("a folder");
    let renewed = Certificates::make(other.path());
    assert!(post(&renewed.authority).await.is_err(), "the certificate of another authority is not served yet");
    std::fs::copy(&renewed.server, &cert).expect("copied");
    std::fs::copy(&renewed.server_key, &key).expect("copied");
    eventually("the new certificate is served", SOON, async || {
        post(&renewed.authority).await.ok().filter(|status| *status == 200).map(|_| ())
    })
    .await;
    bridge.stop().await;
}

#[tokio::test]
async fn probes_are_answered_while_every_worker_is_busy() {
    use std::io::Read as _;
    let bridge = dropping("").await;
    let answer = Client::connect(bridge.admin).await.request("GET", "/healthz", "", &[]).await;
    assert_eq!(answer.status.as_u16(), 200, "it serves");
    // The runtime of this test has one thread, and these calls block it.
    let mut stream = std::net::TcpStream::connect(bridge.admin).expect("it listens");
    stream.set_read_timeout(Some(SOON)).expect("set");
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    bridge.stop().await;
}

#[tokio::test]
async fn probes_and_metrics_have_their_own_listener() {
    let mut bridge = dropping("").await;
    let mut client = Client::connect(bridge.admin).await;
    for (path, expected) in [("/healthz", "ok\n"), ("/readyz", "ready\n")] {
        let answer = client.request("GET", path, "", &[]).await;
        assert_eq!((answer.status.as_u16(), answer.body.as_ref()), (200, expected.as_bytes()));
    }
    let metrics = client.request("GET", "/metrics", "", &[]).await;
    assert_eq!(metrics.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    assert_eq!(client.request("POST", "/metrics", "", &[]).await.status.as_u16(), 405);
    assert_eq!(client.request("GET", "/callbacks", "", &[]).await.status.as_u16(), 404);
    let occupant = occupy(bridge.input).await;
    bridge.begin_stop();
    eventually("not ready any more", SOON, async || {
        let answer = client.request("GET", "/readyz", "", &[]).await;
        (answer.status.as_u16() == 503).then(|| assert_eq!(answer.body.as_ref(), b"stopping\n"))
    })
    .await;
    drop(occupant);
    bridge.stop().await;
}
