//! The NATS output alone, against a real server: deadlines, lost connections, missing permissions, streams.

use std::sync::Arc;
use std::time::Duration;

use apsara_bridge::common::secret::Secret;
use apsara_bridge::common::validation::Validation;
use apsara_bridge::common::watch::Reread;
use apsara_bridge::event::{Attribute, Event, Mode};
use apsara_bridge::output::{ErrorKind, KINDS, Output, OutputContext, PublishError, Record};
use apsara_bridge::telemetry::metrics::Metrics;
use async_nats::jetstream::stream::{DiscardPolicy, StorageType};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::bridge::{TestBridge, callback};
use crate::support::config::{Config, Route};
use crate::support::eventually;
use crate::support::nats::{Auth, Nats, NatsOptions, TOKEN, Tls};
use crate::support::program::Program;
use crate::support::wait::SOON;

/// A server that stopped answering is detected after 2 to 3 seconds. The rest is a margin for busy machines.
const FOUND: Duration = Duration::from_secs(6);

fn start(url: &str, more: &str) -> Arc<dyn Output> {
    start_with_secrets(url, more).0
}

fn start_with_secrets(url: &str, more: &str) -> (Arc<dyn Output>, Vec<Arc<Secret>>) {
    let section = toml::from_str(&format!("servers = ['{url}']\n{more}")).expect("TOML");
    let kind = KINDS.iter().find(|kind| kind.name == "nats").expect("a kind");
    let config = (kind.read)(&section).expect("a valid section");
    let context = OutputContext { name: "nats", deadline: Duration::from_secs(1) };
    let mut validation = Validation::of("");
    let settings = config.validate(context, &mut validation).expect("valid");
    let secrets = validation.finish().secrets.into_iter().map(|(_, secret)| secret).collect();
    (settings.start(&Metrics::new().expect("a valid table")).expect("it starts"), secrets)
}

async fn up(output: &Arc<dyn Output>) {
    tokio::time::timeout(SOON, output.health().wait_until_up()).await.expect("the output connects");
}

async fn down(output: &Arc<dyn Output>) {
    eventually("the output is down", FOUND, async || (!output.health().is_up()).then_some(())).await;
}

fn record(id: &str, topic: &str) -> Record {
    let mut event = Event::new("{}");
    event.set(Attribute::Source, "tests");
    event.set(Attribute::Id, id);
    Record { event: Arc::new(event), topic: topic.to_owned(), key: None, mode: Some(Mode::Structured) }
}

/// A record whose data has this many bytes.
fn large(id: &str, topic: &str, bytes: usize) -> Record {
    let record = record(id, topic);
    let mut event = Event::new(format!("\"{}\"", "x".repeat(bytes)));
    event.set(Attribute::Source, "tests");
    event.set(Attribute::Id, id);
    Record { event: Arc::new(event), ..record }
}

async fn publish(output: &Arc<dyn Output>, id: &str, topic: &str, within: Duration) -> Result<(), PublishError> {
    output.publish(&record(id, topic), Instant::now() + within).await
}

/// Waits until the error of an output that does not connect contains the text, and returns it.
async fn not_connected(output: &Arc<dyn Output>, words: &str) -> PublishError {
    eventually(words, SOON, async || {
        let error = publish(output, "x", "x", Duration::from_secs(1)).await.expect_err("not connected");
        error.message.contains(words).then_some(error)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_publish_ends_at_its_deadline_while_nothing_answers() {
    let nats = Nats::start(NatsOptions::default()).await;
    let output = start(nats.url(), "stream = { name = 'S', subjects = ['s.>'], create = true }");
    up(&output).await;
    nats.stop();
    let mut publishes = JoinSet::new();
    for (number, millis) in [300, 310, 500, 700, 900, 305].into_iter().cycle().take(600).enumerate() {
        let output = output.clone();
        publishes.spawn(async move {
            let deadline = Instant::now() + Duration::from_millis(millis);
            let result = output.publish(&record(&number.to_string(), "s.a"), deadline).await;
            (result, Instant::now().checked_duration_since(deadline))
        });
    }
    while let Some(done) = publishes.join_next().await {
        let (result, late) = done.expect("no panic");
        assert_eq!(result.map_err(|error| error.kind), Err(ErrorKind::TimedOut));
        let late = late.expect("not before its deadline");
        assert!(late < Duration::from_millis(200), "{late:?} late");
    }
    nats.cont();
    up(&output).await;
    // The messages in flight may arrive late, but each only once.
    publish(&output, "last", "s.a", SOON).await.expect("acknowledged");
    let found = nats.messages("S", 1, SOON).await;
    let mut ids: Vec<_> = found.iter().filter_map(|message| message.header("Nats-Msg-Id")).collect();
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_server_is_detected_with_and_without_traffic_and_used_again_afterwards() {
    let nats = Nats::start(NatsOptions::default()).await;
    let output = start(nats.url(), "stream = { name = 'S', subjects = ['s'], create = true }");
    for has_traffic in [true, false] {
        up(&output).await;
        publish(&output, "before", "s", SOON).await.expect("acknowledged");
        nats.stop();
        let frozen = Instant::now();
        while has_traffic && output.health().is_up() {
            assert!(frozen.elapsed() < FOUND, "still up");
            let _ = publish(&output, "during", "s", Duration::from_millis(200)).await;
        }
        down(&output).await;
        // A publish does not wait for an output that is down.
        let asked = Instant::now();
        let error = publish(&output, "down", "s", SOON).await.expect_err("down");
        assert_eq!(error.kind, ErrorKind::Unavailable);
        assert!(asked.elapsed() < Duration::from_secs(1));
        nats.cont();
    }
    up(&output).await;
    publish(&output, "after", "s", SOON).await.expect("acknowledged");
}

#[tokio::test(flavor = "multi_thread")]
async fn publishes_over_a_lost_connection_fail_at_once() {
    let nats = Nats::start(NatsOptions::default()).await;
    let output = start(nats.url(), "stream = { name = 'S', subjects = ['s'], create = true }");
    up(&output).await;
    nats.stop();
    let sent = tokio::spawn({
        let output = output.clone();
        async move { publish(&output, "a", "s", Duration::from_secs(60)).await }
    });
    tokio::task::yield_now().await;
    nats.kill();
    let error = tokio::time::timeout(FOUND, sent).await.expect("long before the deadline").expect("no panic");
    assert_eq!(error.map_err(|error| error.kind), Err(ErrorKind::Unavailable));
    down(&output).await;
    // Wait until the client is replaced: the error of the library alone is shorter.
    not_connected(&output, "Connection refused").await;
    nats.restart().await;
    up(&output).await;
    publish(&output, "a", "s", SOON).await.expect("acknowledged");
    assert_eq!(nats.messages("S", 1, SOON).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_stream_does_not_make_the_output_go_down() {
    let nats = Nats::start(NatsOptions::default()).await;
    nats.create_stream_with("SILENT", &["silent"], |config| config.no_ack = true).await;
    let output = start(nats.url(), "stream = { name = 'S', subjects = ['s'], create = true }");
    up(&output).await;
    let until = Instant::now() + Duration::from_secs(5);
    let mut round = 0;
    while Instant::now() < until {
        round += 1;
        let mut publishes = JoinSet::new();
        for number in 0..500 {
            let output = output.clone();
            let id = format!("{round}-{number}");
            publishes.spawn(async move { publish(&output, &id, "silent", Duration::from_millis(500)).await });
        }
        publish(&output, &round.to_string(), "s", SOON).await.expect("the other stream accepts messages");
        while let Some(result) = publishes.join_next().await {
            assert_eq!(result.expect("no panic").map_err(|error| error.kind), Err(ErrorKind::TimedOut));
        }
        assert!(output.health().is_up());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subject_without_a_stream_works_as_soon_as_there_is_one() {
    let nats = Nats::start(NatsOptions::default()).await;
    let output = start(nats.url(), "");
    up(&output).await;
    let error = publish(&output, "a", "later.x", SOON).await.expect_err("no stream");
    assert_eq!(error.kind, ErrorKind::NoSuchDestination);
    assert!(error.message.starts_with("no stream accepts subject \"later.x\": create one"), "{error}");
    let stream = nats.create_stream("LATER", &["later.>"]).await;
    publish(&output, "a", "later.x", SOON).await.expect("acknowledged");
    publish(&output, "a", "later.x", SOON).await.expect("a repeat is a success");
    assert_eq!(nats.messages("LATER", 1, SOON).await.len(), 1);
    nats.jetstream().await.delete_stream(&stream.cached_info().config.name).await.expect("deleted");
    let error = publish(&output, "b", "later.x", SOON).await.expect_err("no stream");
    assert_eq!(error.kind, ErrorKind::NoSuchDestination);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_subscriber_that_answers_is_not_mistaken_for_a_stream() {
    use futures_util::StreamExt as _;
    let nats = Nats::start(NatsOptions::default()).await;
    let client = nats.client().await;
    let mut requests = client.subscribe("answered.>").await.expect("subscribed");
    client.flush().await.expect("flushed");
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            let _ = client.publish(request.reply.expect("a subject for the answer"), "+OK".into()).await;
        }
    });
    let output = start(nats.url(), "");
    up(&output).await;
    let error = publish(&output, "a", "answered.a", Duration::from_secs(1)).await.expect_err("no stream");
    assert_eq!(error.kind, ErrorKind::Misconfigured);
    nats.create_stream("ANSWERED", &["answered.b"]).await;
    publish(&output, "a", "answered.b", SOON).await.expect("the stream's answer counts");
}

fn user(permissions: &str) -> NatsOptions {
    let config =
        format!("authorization {{ users = [ {{ user: u, password: p, permissions: {{ {permissions} }} }} ] }}");
    NatsOptions { config, ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_permission_is_named_at_once() {
    const LOGIN: &str = "user = 'u'\npassword = 'p'";
    // Publishing, with the permissions that the documentation lists.
    let nats = Nats::start(user(
        "publish: ['$JS.API.STREAM.INFO.S', '$JS.API.STREAM.CREATE.S', 's.may'], subscribe: ['_INBOX.>']",
    ))
    .await;
    let output = start(nats.url(), &format!("{LOGIN}\nstream = {{ name = 'S', subjects = ['s.>'], create = true }}"));
    up(&output).await;
    publish(&output, "a", "s.may", SOON).await.expect("acknowledged");
    let asked = Instant::now();
    let error = publish(&output, "a", "s.may_not", SOON).await.expect_err("refused");
    assert_eq!(error.kind, ErrorKind::Unauthorized);
    assert!(
        error.message.starts_with("the NATS user may not publish on \"s.may_not\": give it the permission"),
        "{error}"
    );
    assert!(asked.elapsed() < Duration::from_secs(5), "at once");
    assert!(output.health().is_up());

    // Receiving answers.
    let nats = Nats::start(user("publish: '>', subscribe: { deny: ['_INBOX.>'] }")).await;
    let output = start(nats.url(), LOGIN);
    let error =
        not_connected(&output, "give it the permission to subscribe to \"_INBOX.>\", or set `inbox_prefix`").await;
    assert_eq!(error.kind, ErrorKind::Unauthorized);
    let output = start(nats.url(), &format!("{LOGIN}\ninbox_prefix = '_MINE.bridge'"));
    up(&output).await;

    // Requests about the stream.
    let nats = Nats::start(user("publish: ['s'], subscribe: ['_INBOX.>']")).await;
    let output = start(nats.url(), LOGIN);
    not_connected(&output, "the NATS user may not publish on \"$JS.API.INFO\"").await;
    let output = start(nats.url(), &format!("{LOGIN}\nstream.name = 'S'"));
    not_connected(&output, "the NATS user may not publish on \"$JS.API.STREAM.INFO.S\"").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permission_that_is_removed_and_granted_again() {
    let nats = Nats::start(user("publish: '>', subscribe: ['_INBOX.>']")).await;
    let output =
        start(nats.url(), "user = 'u'\npassword = 'p'\nstream = { name = 'S', subjects = ['s'], create = true }");
    up(&output).await;
    nats.reload("'_INBOX.>'", "'other'");
    let error = not_connected(&output, "give it the permission to subscribe to").await;
    assert_eq!(error.kind, ErrorKind::Unauthorized);
    down(&output).await;
    nats.reload("'other'", "'_INBOX.>'");
    up(&output).await;
    publish(&output, "a", "s", SOON).await.expect("acknowledged");
    nats.reload("publish: '>'", "publish: '$JS.>'");
    eventually("the permission is missing", SOON, async || {
        publish(&output, "b", "s", SOON).await.is_err_and(|error| error.kind == ErrorKind::Unauthorized).then_some(())
    })
    .await;
    assert!(output.health().is_up());
    nats.reload("publish: '$JS.>'", "publish: '>'");
    eventually("the permission is granted again", SOON, async || publish(&output, "b", "s", SOON).await.ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_with_stuck_writes_is_replaced() {
    for tls in [Tls::Off, Tls::Server] {
        let nats = Nats::start(NatsOptions { tls, ..Default::default() }).await;
        let mut more = "stream = { name = 'S', subjects = ['s'], create = true }\n".to_owned();
        if let Some(files) = nats.certificates() {
            more.push_str(&format!("tls.ca_file = '{}'", files.authority.display()));
        }
        let output = start(nats.url(), &more);
        up(&output).await;
        nats.stop();
        let frozen = Instant::now();
        let mut publishes = JoinSet::new();
        // 40 MB, more than the socket buffers.
        for number in 0..400 {
            let output = output.clone();
            let record = large(&number.to_string(), "s", 100_000);
            publishes.spawn(async move { output.publish(&record, Instant::now() + Duration::from_millis(1000)).await });
        }
        while let Some(result) = publishes.join_next().await {
            let kind = result.expect("no panic").expect_err("frozen").kind;
            assert!(matches!(kind, ErrorKind::TimedOut | ErrorKind::Unavailable), "{kind:?}");
        }
        assert!(frozen.elapsed() < Duration::from_secs(3), "{:?}", frozen.elapsed());
        down(&output).await;
        nats.cont();
        up(&output).await;
        publish(&output, "after", "s", SOON).await.expect("acknowledged");
        // A message that was not passed to the client before its deadline is not sent later.
        let sent = nats.messages("S", 1, SOON).await.len();
        assert!(sent < 390, "{sent}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_the_limit_of_the_account_is_too_large_and_the_connection_recovers() {
    let config = "accounts { A { jetstream: enabled, users = [ { user: u, password: p } ], \
                  limits { max_payload: 2000 } } }";
    let nats = Nats::start(NatsOptions { config: config.to_owned(), ..Default::default() }).await;
    let stream = "stream = { name = 'S', subjects = ['s'], create = true }";
    let output = start(nats.url(), &format!("user = 'u'\npassword = 'p'\n{stream}"));
    up(&output).await;
    publish(&output, "a", "s", SOON).await.expect("acknowledged");
    let error = output.publish(&large("large", "s", 3000), Instant::now() + SOON).await.expect_err("refused");
    assert_eq!(error.kind, ErrorKind::TooLarge, "{error}");
    // The server ends the connection too.
    eventually("accepted again", SOON, async || publish(&output, "b", "s", SOON).await.ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_error_says_that_jetstream_does_not_answer() {
    let nats = Nats::start(NatsOptions { jetstream: false, ..Default::default() }).await;
    let output = start(nats.url(), "");
    not_connected(&output, "JetStream does not answer").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_created_as_configured_and_an_existing_one_is_not_changed() {
    let nats = Nats::start(NatsOptions::default()).await;
    let output = start(
        nats.url(),
        "[stream]\nname = 'MADE'\nsubjects = ['made.>']\ncreate = true\nreplicas = 1\nstorage = 'memory'\n\
         duplicate_window = '10m'\nmax_age = '1h'\nmax_bytes = '1MiB'",
    );
    up(&output).await;
    let made = |stream: &str| {
        let (nats, stream) = (&nats, stream.to_owned());
        async move { nats.jetstream().await.get_stream(&stream).await.expect("there").cached_info().config.clone() }
    };
    let config = made("MADE").await;
    assert_eq!(config.subjects, ["made.>"]);
    assert_eq!((config.num_replicas, config.storage, config.discard), (1, StorageType::Memory, DiscardPolicy::New));
    assert_eq!((config.duplicate_window.as_secs(), config.max_age.as_secs(), config.max_bytes), (600, 3600, 1 << 20));
    // A full stream is a transient error, and nothing in it is deleted.
    for number in 0.. {
        let large = large(&number.to_string(), "made.x", 200_000);
        match output.publish(&large, Instant::now() + SOON).await {
            Ok(()) => assert!(number < 6, "1 MiB has no room for six of them"),
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::Unavailable);
                assert!(error.message.contains("maximum bytes exceeded (JetStream error 10077)"), "{error}");
                break;
            }
        }
    }
    assert_eq!(nats.messages("MADE", 1, SOON).await[0].sequence, 1);

    let before = nats.create_stream("TUNED", &["tuned.a"]).await.cached_info().config.clone();
    let output = start(
        nats.url(),
        "stream = { name = 'TUNED', subjects = ['tuned.>'], create = true, replicas = 3, max_bytes = '1MiB' }",
    );
    up(&output).await;
    assert_eq!(made("TUNED").await, before);
    // The server's message says why it cannot be created.
    let output = start(nats.url(), "stream = { name = 'THREE', subjects = ['three'], create = true, replicas = 3 }");
    not_connected(&output, "stream `THREE` cannot be created: ").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_dead_letters_of_one_event_are_both_kept() {
    let nats = Nats::start(NatsOptions::default()).await;
    let output = start(nats.url(), "stream = { name = 'S', subjects = ['s'], create = true }");
    up(&output).await;
    for (reason, destination) in [("too_large", "nats/a"), ("too_large", "nats/b"), ("rejected", "nats/b")] {
        for _ in 0..2 {
            let mut letter = record("same", "s");
            let event = Arc::make_mut(&mut letter.event);
            event.set(Attribute::DlqReason, reason);
            event.set(Attribute::DlqDestination, destination);
            output.publish(&letter, Instant::now() + SOON).await.expect("acknowledged");
        }
    }
    publish(&output, "same", "s", SOON).await.expect("acknowledged");
    let ids: Vec<String> = nats
        .messages("S", 4, SOON)
        .await
        .iter()
        .map(|message| message.header("Nats-Msg-Id").expect("an id").to_owned())
        .collect();
    assert_eq!(
        ids,
        [
            "tests|same|s|too_large|nats/a",
            "tests|same|s|too_large|nats/b",
            "tests|same|s|rejected|nats/b",
            "tests|same|s"
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_fails_at_two_destinations_leaves_two_dead_letters() {
    let nats = Nats::start(NatsOptions::default()).await;
    nats.create_stream_with("SMALL", &["small.>"], |config| config.max_message_size = 100).await;
    nats.create_stream("DEAD", &["dead"]).await;
    let config = Config::http()
        .nats(nats.url())
        .route(Route::new("both").to("nats", "small.a").to("nats", "small.b"))
        .dead_letters_to("nats", "dead");
    let bridge = TestBridge::start_connected(&config).await;
    assert_eq!(bridge.post(callback("a")).await.status.as_u16(), 200);
    assert_eq!(nats.messages("DEAD", 2, SOON).await.len(), 2);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_a_new_secret_is_used_again_when_the_file_has_it() {
    let old = Nats::start(NatsOptions { auth: Auth::Token, ..Default::default() }).await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), TOKEN).expect("written");
    let (output, secrets) = start_with_secrets(
        old.url(),
        &format!(
            "token = {{ file = '{}' }}\nstream = {{ name = 'S', subjects = ['s'], create = true }}",
            file.path().display()
        ),
    );
    up(&output).await;
    old.restart_with_token("another").await;
    down(&output).await;
    not_connected(&output, "authorization violation").await;
    std::fs::write(file.path(), "another").expect("written");
    secrets.iter().for_each(|secret| secret.reread().expect("readable"));
    up(&output).await;
    publish(&output, "a", "s", SOON).await.expect("acknowledged");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_protects_less_is_logged_when_the_output_connects() {
    let nats = Nats::start(NatsOptions::default()).await;
    nats.create_stream_with("WEAK", &["weak.a"], |config| {
        config.max_messages = 10;
        config.storage = StorageType::Memory;
    })
    .await;
    let folder = tempfile::tempdir().expect("a folder");
    let config = Config::http()
        .nats(nats.url())
        .stream("WEAK", "weak.>")
        .set("outputs.nats.stream = { replicas = 3, duplicate_window = '1h' }")
        .to("nats", "weak.a");
    let bridge = Program::start(folder.path(), config);
    bridge.ready().await;
    let log = bridge.process().log();
    for sentence in [
        "stream `WEAK` has 1 replicas; configured: 3",
        "stream `WEAK` keeps its messages in memory only: a restart of its servers loses them",
        "stream `WEAK` has a duplicate window of 2m; configured: 1h. Later repeats are stored twice",
        "stream `WEAK` deletes its oldest messages when it is full, also unread ones (discard old)",
        "stream `WEAK` does not accept `weak.>`, which is configured; it accepts weak.a",
    ] {
        assert_eq!(log.matches(sentence).count(), 1, "{sentence} in:\n{log}");
    }
    assert_eq!(log.matches("the stream is not as configured").count(), 5, "{log}");
}
