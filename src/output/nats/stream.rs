//! The stream that stores the messages: created as configured, or compared with the configuration.
//!
//! An existing stream is never changed, because an operator may have tuned it. Each setting that protects less than
//! configured, or that can lose unread messages, gives a warning of one sentence.

use std::time::Duration;

use async_nats::jetstream::context::{CreateStreamError, GetStreamError, GetStreamErrorKind};
use async_nats::jetstream::stream::{Config, DiscardPolicy, PersistenceMode, RetentionPolicy, StorageType};
use async_nats::jetstream::{Context, ErrorCode};

use super::stream_config::{StreamConfig, StreamStorage, covers};
use crate::common::units::{Size, Span};

/// Makes sure that JetStream answers, and that the stream exists if one is configured. Returns warnings.
///
/// # Errors
/// A sentence with the remedy.
pub(super) async fn ensure(context: &Context, wanted: Option<&StreamConfig>) -> Result<Vec<String>, String> {
    let Some(wanted) = wanted else {
        return match context.query_account().await {
            Ok(_) => Ok(Vec::new()),
            Err(error) => Err(format!("JetStream does not answer: {error}")),
        };
    };
    let name = &wanted.name;
    match context.get_stream(name).await {
        Ok(stream) => Ok(warnings(wanted, &stream.cached_info().config)),
        Err(error) if is_missing(&error) && wanted.create => {
            let created = context.create_stream(settings(wanted)).await;
            let created =
                created.map_err(|error| format!("stream `{name}` cannot be created: {}", create_error(&error)))?;
            tracing::info!(stream = name, "stream created");
            Ok(warnings(wanted, &created.cached_info().config))
        }
        Err(error) if is_missing(&error) => {
            Err(format!("stream `{name}` does not exist; create it, or set `stream.create = true`"))
        }
        Err(error) => Err(format!("JetStream does not say whether stream `{name}` exists: {}", get_error(&error))),
    }
}

pub(super) fn is_missing(error: &GetStreamError) -> bool {
    matches!(error.kind(), GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

/// The error with its cause. Only the cause says what happened.
pub(super) fn get_error(error: &GetStreamError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => cause.to_string(),
        None => error.to_string(),
    }
}

fn create_error(error: &CreateStreamError) -> String {
    error.to_string()
}

/// The settings of a stream that is created here. If a limit is set, a full stream refuses new messages. They wait in
/// the spool, and nothing unread is deleted.
pub(super) fn settings(wanted: &StreamConfig) -> Config {
    Config {
        name: wanted.name.clone(),
        subjects: wanted.subjects.clone(),
        num_replicas: wanted.replicas.unwrap_or(1),
        storage: match wanted.storage {
            StreamStorage::File => StorageType::File,
            StreamStorage::Memory => StorageType::Memory,
        },
        // Zero means the server's own default, which is no longer than max_age.
        duplicate_window: wanted.duplicate_window.map_or(Duration::ZERO, |window| window.0),
        max_age: wanted.max_age.map_or(Duration::ZERO, |age| age.0),
        max_bytes: wanted.max_bytes.map_or(-1, |bytes| i64::try_from(bytes.0).unwrap_or(i64::MAX)),
        discard: if wanted.max_bytes.is_some() { DiscardPolicy::New } else { DiscardPolicy::Old },
        ..Config::default()
    }
}

/// How an existing stream protects less than configured, or can lose or refuse messages, a sentence each.
pub(super) fn warnings(wanted: &StreamConfig, found: &Config) -> Vec<String> {
    let mut sentences = weaker(wanted, found);
    sentences.extend(losing(found));
    sentences.extend(refusing(found));
    sentences.extend(subjects(wanted, found));
    sentences.into_iter().map(|sentence| format!("stream `{}` {sentence}", found.name)).collect()
}

/// How an existing stream differs from what is configured.
pub(super) fn differences(wanted: &StreamConfig, found: &Config) -> Vec<String> {
    weaker(wanted, found).into_iter().chain(subjects(wanted, found)).collect()
}

fn weaker(wanted: &StreamConfig, found: &Config) -> Vec<String> {
    let mut sentences = Vec::new();
    let replicas = wanted.replicas.unwrap_or(1);
    if found.num_replicas < replicas {
        sentences.push(format!("has {} replicas; configured: {replicas}", found.num_replicas));
    }
    if wanted.storage == StreamStorage::File && found.storage == StorageType::Memory {
        sentences.push("keeps its messages in memory only: a restart of its servers loses them".to_owned());
    }
    if let Some(window) = wanted.duplicate_window.filter(|window| found.duplicate_window < window.0) {
        let found = Span(found.duplicate_window);
        sentences
            .push(format!("has a duplicate window of {found}; configured: {window}. Later repeats are stored twice"));
    }
    if let Some(age) = wanted.max_age.filter(|age| !found.max_age.is_zero() && found.max_age < age.0) {
        sentences.push(format!("deletes messages after {}; configured: {age}", Span(found.max_age)));
    }
    let max_bytes = u64::try_from(found.max_bytes).ok().filter(|bytes| *bytes > 0).map(Size);
    if let (Some(bytes), Some(found)) = (wanted.max_bytes, max_bytes)
        && found < bytes
    {
        sentences.push(format!("holds at most {found}; configured: {bytes}"));
    }
    sentences
}

/// How a stream can lose messages, or refuse some, whatever is configured.
pub(super) fn losing(found: &Config) -> Vec<String> {
    let mut sentences = Vec::new();
    let has_limit = found.max_bytes > 0 || found.max_messages > 0 || found.max_messages_per_subject > 0;
    if found.discard == DiscardPolicy::Old && has_limit {
        sentences.push(
            "deletes its oldest messages when it is full, also unread ones (discard old); discard new keeps them"
                .to_owned(),
        );
    }
    if found.retention == RetentionPolicy::Interest {
        sentences.push("deletes messages immediately if no consumer wants them (retention interest)".to_owned());
    }
    if found.discard == DiscardPolicy::New && found.discard_new_per_subject && found.max_messages_per_subject > 0 {
        sentences.push(format!(
            "refuses messages of a subject that has {} (discard_new_per_subject)",
            found.max_messages_per_subject
        ));
    }
    if found.persist_mode == Some(PersistenceMode::Async) {
        sentences.push("acknowledges messages before they are stored (persist_mode async)".to_owned());
    }
    sentences
}

/// Why nothing can be published to a stream.
pub(super) fn refusing(found: &Config) -> Vec<String> {
    let mut sentences = Vec::new();
    if found.no_ack {
        sentences.push("acknowledges nothing (no_ack): every publish times out".to_owned());
    }
    if found.sealed {
        sentences.push("is sealed: it accepts no messages".to_owned());
    }
    if found.mirror.is_some() {
        sentences.push("is a mirror: it accepts no messages from publishers".to_owned());
    }
    sentences
}

/// How the subjects differ from those that are configured.
fn subjects(wanted: &StreamConfig, found: &Config) -> Vec<String> {
    let outside = |subjects: &[String], of: &[String]| -> Vec<String> {
        let is_outside = |subject: &&String| !of.iter().any(|outer| covers(outer, subject));
        subjects.iter().filter(is_outside).map(|subject| format!("`{subject}`")).collect()
    };
    let mut sentences = Vec::new();
    if wanted.subjects.is_empty() {
        return sentences;
    }
    let missing = outside(&wanted.subjects, &found.subjects);
    if !missing.is_empty() {
        let accepted = if found.subjects.is_empty() { "none".to_owned() } else { found.subjects.join(", ") };
        sentences.push(format!("does not accept {}, which is configured; it accepts {accepted}", missing.join(", ")));
    }
    let more = outside(&found.subjects, &wanted.subjects);
    if !more.is_empty() {
        sentences.push(format!("also accepts {}, which is not configured", more.join(", ")));
    }
    sentences
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(text: &str) -> StreamConfig {
        toml::from_str(&format!("name = 'S'\n{text}")).expect("valid")
    }

    #[test]
    fn a_stream_as_configured_gives_no_warning() {
        for text in [
            "subjects = ['a.>']",
            "subjects = ['a.>']\nreplicas = 3\nduplicate_window = '1h'\nmax_age = '7d'\nmax_bytes = '10GiB'",
            "subjects = ['a.>']\nstorage = 'memory'",
        ] {
            let wanted = wanted(text);
            assert_eq!(warnings(&wanted, &settings(&wanted)), Vec::<String>::new());
        }
    }

    #[test]
    fn a_limit_of_bytes_refuses_new_messages() {
        let limited = settings(&wanted("max_bytes = '1MiB'"));
        assert_eq!((limited.discard, limited.max_bytes), (DiscardPolicy::New, 1 << 20));
        assert_eq!(limited.num_replicas, 1);
    }

    #[test]
    fn each_weakness_gives_a_sentence() {
        let wanted = wanted(
            "subjects = ['a.>', 'b']\nreplicas = 3\nduplicate_window = '10m'\nmax_age = '1h'\nmax_bytes = '2MiB'",
        );
        let found = Config {
            name: "S".to_owned(),
            subjects: vec!["a.*".to_owned(), "b".to_owned(), "c".to_owned()],
            num_replicas: 1,
            storage: StorageType::Memory,
            duplicate_window: Duration::from_secs(120),
            max_age: Duration::from_secs(60),
            max_bytes: 1 << 20,
            discard: DiscardPolicy::Old,
            retention: RetentionPolicy::Interest,
            no_ack: true,
            sealed: true,
            persist_mode: Some(PersistenceMode::Async),
            ..Config::default()
        };
        assert_eq!(
            warnings(&wanted, &found),
            [
                "stream `S` has 1 replicas; configured: 3",
                "stream `S` keeps its messages in memory only: a restart of its servers loses them",
                "stream `S` has a duplicate window of 2m; configured: 10m. Later repeats are stored twice",
                "stream `S` deletes messages after 1m; configured: 1h",
                "stream `S` holds at most 1MiB; configured: 2MiB",
                "stream `S` deletes its oldest messages when it is full, also unread ones (discard old); discard new keeps \
                 them",
                "stream `S` deletes messages immediately if no consumer wants them (retention interest)",
                "stream `S` acknowledges messages before they are stored (persist_mode async)",
                "stream `S` acknowledges nothing (no_ack): every publish times out",
                "stream `S` is sealed: it accepts no messages",
                "stream `S` does not accept `a.>`, which is configured; it accepts a.*, b, c",
                "stream `S` also accepts `c`, which is not configured",
            ]
        );
    }
}
