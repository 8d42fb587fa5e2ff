//! Callbacks to a real NATS: what arrives there, checked by independent readers; logins; and every kind of failure.

use std::time::{Duration, Instant};

use crate::support::bridge::{Client, TestBridge, callback, large_callback, signed_headers};
use crate::support::config::{Config, Route};
use crate::support::judges::{self, Message, Mode};
use crate::support::kafka::mock;
use crate::support::nats::{Auth, Nats, NatsOptions, PASSWORD, TOKEN, Tls, USER};
use crate::support::wait::SOON;
use crate::support::{eventually, samples};

fn config(nats: &Nats, subject: &str) -> Config {
    Config::http().nats(nats.url()).to("nats", subject)
}

#[tokio::test(flavor = "multi_thread")]
async fn independent_readers_see_the_same_event_in_both_modes() {
    let nats = Nats::shared().await;
    let both = Route::new("both").to("nats", "modes.structured.{status}").destination(
        "nats",
        "modes.binary.{status}",
        "mode = 'binary'",
    );
    let config = Config::http().nats(nats.url()).stream("MODES", "modes.>").route(both);
    let bridge = TestBridge::start_connected(&config).await;
    let mut client = Client::connect(bridge.input).await;
    // Samples with the same content are one event, and the stream keeps it once.
    for body in samples() {
        assert_eq!(client.post("/callbacks", body, &signed_headers("ICE")).await.status.as_u16(), 200);
    }
    let messages = nats.messages("MODES", 2, SOON).await;
    let mut seen = [Vec::new(), Vec::new()];
    for message in &messages {
        let event = judges::accepted(&Message::nats(message));
        let attribute = |name: &str| event.attribute(name).unwrap_or_else(|| panic!("{name}")).to_owned();
        let mode = usize::from(event.mode == Mode::Binary);
        let layout = ["structured", "binary"][mode];
        assert_eq!(message.subject, format!("modes.{layout}.{}", attribute("status")));
        seen[mode].push((attribute("id"), attribute("subject"), event.data.clone().expect("data").to_string()));
    }
    seen.iter_mut().for_each(|events| events.sort());
    assert!(seen[0].len() > 40, "{}", seen[0].len());
    assert_eq!(seen[0], seen[1]);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_is_dropped_by_the_stream_and_two_subjects_are_not_repeats() {
    let nats = Nats::shared().await;
    let both = Route::new("both").to("nats", "repeat.a").to("nats", "repeat.b");
    let config = Config::http().nats(nats.url()).stream("REPEAT", "repeat.*").route(both);
    let bridge = TestBridge::start_connected(&config).await;
    for _ in 0..3 {
        assert_eq!(bridge.post(callback("same")).await.status.as_u16(), 200);
    }
    let messages = nats.messages("REPEAT", 2, SOON).await;
    let mut subjects: Vec<&str> = messages.iter().map(|message| message.subject.as_str()).collect();
    subjects.sort_unstable();
    assert_eq!(subjects, ["repeat.a", "repeat.b"]);
    let id = messages[0].header("Nats-Msg-Id").expect("an id for the stream");
    assert!(id.starts_with("acs:vod|") && id.ends_with(&messages[0].subject), "{id}");
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_log_in_and_tls_work() {
    for (auth, tls) in [
        (Auth::UserPassword, Tls::Off),
        (Auth::Token, Tls::Server),
        (Auth::Nkey, Tls::Off),
        (Auth::Credentials, Tls::Off),
        (Auth::None, Tls::Mutual),
    ] {
        let nats = Nats::start(NatsOptions { auth, tls, ..Default::default() }).await;
        let login = match auth {
            Auth::None => String::new(),
            Auth::UserPassword => format!("user = '{USER}'\npassword = '{PASSWORD}'"),
            Auth::Token => format!("token = '{TOKEN}'"),
            Auth::Nkey => format!("nkey = '{}'", nats.nkey_seed()),
            Auth::Credentials => format!("credentials_file = '{}'", nats.credentials_file().display()),
        };
        let mut config = config(&nats, "login").set(&format!("[outputs.nats]\n{login}")).stream("LOGIN", "login");
        if let Some(files) = nats.certificates() {
            config = config.set(&format!("outputs.nats.tls.ca_file = '{}'", files.authority.display()));
            if matches!(tls, Tls::Mutual) {
                let (cert, key) = (files.client.display(), files.client_key.display());
                config = config.set(&format!("outputs.nats.tls = {{ cert_file = '{cert}', key_file = '{key}' }}"));
            }
        }
        let bridge = TestBridge::start_connected(&config).await;
        assert_eq!(bridge.post(callback("a")).await.status.as_u16(), 200);
        assert_eq!(nats.messages("LOGIN", 1, SOON).await.len(), 1);
        bridge.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_may_not_publish_causes_an_error() {
    let nats = Nats::start(NatsOptions {
        config: "authorization { users = [ { user: limited, password: x, permissions: { publish: { deny: 'secret.>' } } } ] }"
            .to_owned(),
        ..Default::default()
    })
    .await;
    let config =
        config(&nats, "secret.a").set("outputs.nats = { user = 'limited', password = 'x' }").stream("ALL", "secret.>");
    let bridge = TestBridge::start_connected(&config).await;
    let (_, detail) = bridge.post(callback("a")).await.problem();
    assert_eq!(detail, "1 of 1 destination did not acknowledge the event in time");
    assert!(bridge.metric(r#"apsara_bridge_publish_failures_total{kind="unauthorized",output="nats"}"#) >= 1.0);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_stream_is_reported_and_used_when_it_exists() {
    let nats = Nats::start(NatsOptions::default()).await;
    let bridge = TestBridge::start(&config(&nats, "later").set("outputs.nats.stream.name = 'LATER'")).await;
    let answer = bridge.post(callback("a")).await;
    assert_eq!((answer.status.as_u16(), answer.problem().0.as_str()), (503, "refused"));
    nats.create_stream("LATER", &["later"]).await;
    bridge.connected().await;
    assert_eq!(bridge.post(callback("a")).await.status.as_u16(), 200);
    bridge.stop().await;

    let elsewhere = TestBridge::start_connected(&config(&nats, "no.stream.takes.this")).await;
    let (_, detail) = elsewhere.post(callback("a")).await.problem();
    assert_eq!(detail, "1 of 1 destination did not acknowledge the event in time");
    let missing = r#"apsara_bridge_publish_failures_total{kind="no_such_destination",output="nats"}"#;
    assert!(elsewhere.metric(missing) >= 1.0);
    elsewhere.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_the_limit_becomes_a_dead_letter() {
    let nats = Nats::start(NatsOptions::default()).await;
    nats.create_stream_with("SMALL", &["small.events"], |config| config.max_message_size = 2000).await;
    nats.create_stream("DEAD", &["small.dead"]).await;
    let config = config(&nats, "small.events").dead_letters_to("nats", "small.dead");
    let bridge = TestBridge::start_connected(&config).await;
    let long = large_callback("kept", 4000);
    assert_eq!(bridge.post(long).await.status.as_u16(), 200);
    let letters = nats.messages("DEAD", 1, SOON).await;
    let letter = judges::accepted(&Message::nats(&letters[0]));
    assert_eq!(letter.attribute("dlqreason"), Some("too_large"));
    assert_eq!(letter.attribute("dlqdestination"), Some("nats/small.events"));
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_means_503_until_it_is_back() {
    let nats = Nats::start(NatsOptions::default()).await;
    let bridge = TestBridge::start_connected(&config(&nats, "outage").stream("OUTAGE", "outage")).await;
    assert_eq!(bridge.post(callback("before")).await.status.as_u16(), 200);

    nats.stop();
    let start = Instant::now();
    assert_eq!(bridge.post(callback("frozen")).await.status.as_u16(), 503);
    assert!(start.elapsed() < Duration::from_secs(3), "longer than IMS waits: {:?}", start.elapsed());
    nats.cont();
    bridge.connected().await;

    nats.kill();
    eventually("known to be down", SOON, async || {
        assert_eq!(bridge.post(callback("dead")).await.status.as_u16(), 503);
        (!bridge.bridge.is_connected()).then_some(())
    })
    .await;
    nats.restart().await;
    bridge.connected().await;
    bridge.accepted("after").await;
    let found = nats.messages("OUTAGE", 2, SOON).await;
    for id in ["before", "after"] {
        let is_it = |payload: &[u8]| String::from_utf8_lossy(payload).contains(&format!("\"subject\":\"{id}\""));
        assert_eq!(found.iter().filter(|message| is_it(&message.payload)).count(), 1, "{id}");
    }
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn core_nats_delivers_to_subscribers() {
    let nats = Nats::shared().await;
    let client = nats.client().await;
    let mut listener = client.subscribe("core.>").await.expect("subscribed");
    client.flush().await.expect("flushed");
    let config = config(nats, "core.{status}").set("outputs.nats.delivery = 'core'");
    let bridge = TestBridge::start_connected(&config).await;
    assert_eq!(bridge.post(callback("a")).await.status.as_u16(), 200);
    let message = tokio::time::timeout(SOON, futures_util::StreamExt::next(&mut listener)).await;
    let message = message.expect("in time").expect("a message");
    assert_eq!(message.subject.as_str(), "core.success");
    assert_eq!(
        message.headers.expect("headers").get("Content-Type").map(|value| value.as_str()),
        Some("application/cloudevents+json")
    );
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_names_the_bus_that_fails() {
    let nats = Nats::start(NatsOptions::default()).await;
    let cluster = mock(&["both"]);
    let config = Config::http()
        .nats(nats.url())
        .stream("BOTH", "both")
        .kafka(&cluster.bootstrap_servers())
        .route(Route::new("both").to("kafka", "both").to("nats", "both"));
    let bridge = TestBridge::start_connected(&config).await;
    assert_eq!(bridge.post(callback("a")).await.status.as_u16(), 200);
    nats.kill();
    let answer = bridge.post(callback("b")).await;
    assert_eq!(answer.status.as_u16(), 503);
    assert_eq!(answer.problem().1, "1 of 2 destinations did not acknowledge the event in time");
    assert_eq!(bridge.metric(r#"apsara_bridge_published_total{output="kafka"}"#), 2.0);
    assert_eq!(bridge.metric(r#"apsara_bridge_published_total{output="nats"}"#), 1.0);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_in_a_file_is_read_again_and_a_wrong_one_does_no_harm() {
    let nats = Nats::start(NatsOptions { auth: Auth::Token, ..Default::default() }).await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "not-the-token").expect("written");
    let config = config(&nats, "secret")
        .set(&format!("outputs.nats.token = {{ file = '{}' }}", file.path().display()))
        .stream("SECRET", "secret");
    let bridge = TestBridge::start(&config).await;
    assert_eq!(bridge.post(callback("a")).await.status.as_u16(), 503);
    std::fs::write(file.path(), TOKEN).expect("written");
    bridge.connected().await;
    assert_eq!(bridge.post(callback("a")).await.status.as_u16(), 200);
    let refused =
        || std::fs::read_to_string(nats.log_file()).expect("the server's log").matches("authentication error").count();
    let before = refused();
    std::fs::write(file.path(), "wrong-again").expect("written");
    eventually("a login with the wrong secret", SOON, async || (refused() > before).then_some(())).await;
    assert_eq!(bridge.post(callback("b")).await.status.as_u16(), 200, "the connection continues");
    bridge.stop().await;
}
