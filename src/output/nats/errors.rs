//! What each answer to a publish means: one table from the error codes of JetStream to [`ErrorKind`].
//!
//! The codes are those of nats-server (`server/errors.json`, version 2.15), as far as `server/stream.go`,
//! `server/jetstream_cluster.go` and `server/jetstream_batching.go` send them as the answer to a published message.
//! A code that is not in the table is transient. A retry that cannot succeed does little harm, but a record that fails
//! for good too early is one.

use serde::Deserialize;

use crate::output::{ErrorKind, PublishError};

/// The error in an answer of JetStream.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ApiError {
    code: u64,
    err_code: u64,
    description: String,
}

/// A row of the table: error code, kind, reason.
type Row = (u64, ErrorKind, &'static str);

/// The error codes that a publish can be answered with.
#[rustfmt::skip]
const CODES: &[Row] = {
    use ErrorKind::{Misconfigured, NoSuchDestination, Rejected, TooLarge, Unavailable};
    &[
    // The server or the cluster cannot store messages now, but later.
    (10004, Unavailable, "part of the cluster does not answer"),
    (10007, Unavailable, "this server has no assignment yet: the cluster is starting"),
    (10008, Unavailable, "JetStream is temporarily unavailable: the cluster has no leader or no quorum"),
    (10009, Unavailable, "this server is not the leader of the stream any more: another server is or will be"),
    (10041, Unavailable, "the replicas cannot agree now, for example without a quorum"),
    (10051, Unavailable, "the stream has an error that does not depend on the message"),
    (10063, Unavailable, "the positions of leader and follower differ until the follower has caught up"),
    (10075, Unavailable, "replicas are being moved to other servers"),
    (10096, Unavailable, "the stream is being closed or restored"),
    (10118, Unavailable, "the servers that hold the stream are offline"),
    (10194, Unavailable, "the stream is offline on this server, for example during an upgrade"),
    // A limit is reached. It passes when consumers acknowledge, messages expire or an operator adds space.
    (10002, Unavailable, "the limits of the account are reached"),
    (10023, Unavailable, "the server has no room for more"),
    (10028, Unavailable, "the server has no memory left for streams"),
    (10047, Unavailable, "the server has no storage left for streams"),
    (10053, Unavailable, "a limit of the stream is reached"),
    (10077, Unavailable, "the store did not accept the message: the stream is full (discard new) or the disk failed"),
    (10122, Unavailable, "the limit of the account for the size of streams is reached"),
    // Too much at once, or the same message at the same time.
    (10158, Unavailable, "the same Nats-Msg-Id is being stored now: the next attempt is a duplicate, which is success"),
    (10163, Unavailable, "the last sequence of the subject is not known yet"),
    (10167, Unavailable, "the stream has too many messages waiting to be stored"),
    (10210, Unavailable, "too many batches at once"),
    (10211, Unavailable, "too many batches at once"),
    // The destination is missing.
    (10059, NoSuchDestination, "the stream was deleted"),
    // The settings of the server, the account or the stream prevent every publish.
    (10035, Misconfigured, "the account does not exist"),
    (10039, Misconfigured, "JetStream is not enabled for the account"),
    (10076, Misconfigured, "JetStream is not enabled on the server"),
    (10109, Misconfigured, "the stream is sealed: it accepts no more messages"),
    (10120, Misconfigured, "the account has no JetStream limits for this number of replicas"),
    (10169, Misconfigured, "the stream counts (allow_msg_counter): it accepts increments only"),
    (10170, Misconfigured, "the stream counts (allow_msg_counter): it accepts no payload"),
    (10171, Misconfigured, "the stream counts (allow_msg_counter): it accepts increments only"),
    (10172, Misconfigured, "the stream counts (allow_msg_counter) and its last value is not a number"),
    (10185, Misconfigured, "the server is older than the client demands"),
    // The message has the wrong size.
    (10054, TooLarge, "larger than max_msg_size of the stream, or than max_payload of the server"),
    (10097, TooLarge, "the headers are larger than 64 KiB"),
    // The message itself is invalid. The bridge sends none of the headers that these codes are about.
    (10060, Rejected, "Nats-Expected-Stream names another stream"),
    (10165, Rejected, "Nats-TTL is malformed"),
    ]
};

/// The kind of an error code. Unknown ones are transient.
fn kind_of(error: &ApiError) -> ErrorKind {
    if matches!(error.code, 401 | 403) {
        return ErrorKind::Unauthorized;
    }
    let row = CODES.iter().find(|(code, ..)| *code == error.err_code);
    row.map_or(ErrorKind::Unavailable, |(_, kind, _)| *kind)
}

/// The error of an answer, with the server's message and code.
pub(super) fn refused(error: &ApiError) -> PublishError {
    let words = if error.description.is_empty() { "no description" } else { &error.description };
    PublishError::new(kind_of(error), format!("{words} (JetStream error {})", error.err_code))
}

/// No stream and no client listens on the subject (status 503).
pub(super) fn no_responders(subject: &str) -> PublishError {
    PublishError::new(
        ErrorKind::NoSuchDestination,
        format!(
            "no stream accepts subject \"{subject}\": create one, or set `stream.create`; this also happens briefly \
             while a cluster elects a leader (503 no responders)"
        ),
    )
}

/// No acknowledgement came in time.
pub(super) fn timed_out() -> PublishError {
    PublishError::new(ErrorKind::TimedOut, "no acknowledgement before the deadline")
}

/// A client answered, but not JetStream.
pub(super) fn not_an_acknowledgement(subject: &str) -> PublishError {
    PublishError::new(
        ErrorKind::Misconfigured,
        format!("a client that listens on \"{subject}\" answers instead of a stream, and no stream acknowledged"),
    )
}

/// The connection ended while the message was on its way.
pub(super) fn connection_lost() -> PublishError {
    PublishError::new(ErrorKind::Unavailable, "the connection was lost before the acknowledgement came")
}

/// No slot became free in time.
pub(super) fn queue_full() -> PublishError {
    PublishError::new(ErrorKind::QueueFull, "too many messages wait for their acknowledgements")
}

/// The message is larger than the server accepts.
pub(super) fn too_large(words: impl std::fmt::Display) -> PublishError {
    PublishError::new(ErrorKind::TooLarge, words)
}

/// An error of the client library before the message was sent.
pub(super) fn not_sent(error: &async_nats::client::PublishError) -> PublishError {
    use async_nats::client::PublishErrorKind::{InvalidSubject, MaxPayloadExceeded, Send};
    match error.kind() {
        MaxPayloadExceeded => too_large(error),
        InvalidSubject => PublishError::new(ErrorKind::Rejected, error),
        Send => connection_lost(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(json: &str) -> ErrorKind {
        refused(&serde_json::from_str(json).expect("an error")).kind
    }

    #[test]
    fn each_code_has_its_kind() {
        use ErrorKind::{Misconfigured, NoSuchDestination, Rejected, TooLarge, Unauthorized, Unavailable};
        for (code, err_code, expected) in [
            (400, 10002, Unavailable),
            (503, 10077, Unavailable),
            (503, 10008, Unavailable),
            (409, 10158, Unavailable),
            (429, 10167, Unavailable),
            (503, 10023, Unavailable),
            (500, 10047, Unavailable),
            (404, 10059, NoSuchDestination),
            (503, 10076, Misconfigured),
            (503, 10039, Misconfigured),
            (400, 10109, Misconfigured),
            (400, 10054, TooLarge),
            (400, 10097, TooLarge),
            (400, 10165, Rejected),
            (403, 0, Unauthorized),
            // Unknown ones, whatever their status.
            (400, 19999, Unavailable),
            (500, 0, Unavailable),
        ] {
            let error = format!(r#"{{"code":{code},"err_code":{err_code},"description":"words"}}"#);
            assert_eq!(kind(&error), expected, "{err_code}");
        }
        assert_eq!(kind("{}"), Unavailable);
    }

    #[test]
    fn the_table_names_each_code_once_and_rejects_little() {
        let mut codes: Vec<u64> = CODES.iter().map(|(code, ..)| *code).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), CODES.len());
        assert!(CODES.iter().all(|(code, _, reason)| (10000..10300).contains(code) && !reason.is_empty()));
        let permanent = CODES.iter().filter(|(_, kind, _)| matches!(kind, ErrorKind::Rejected | ErrorKind::TooLarge));
        assert_eq!(permanent.count(), 4);
    }

    #[test]
    fn errors_contain_the_message_and_the_code_of_the_server() {
        let error = r#"{"code":503,"err_code":10077,"description":"maximum bytes exceeded"}"#;
        let error = refused(&serde_json::from_str(error).expect("an error"));
        assert_eq!(error.message, "maximum bytes exceeded (JetStream error 10077)");
        let missing = no_responders("media.x");
        assert!(missing.message.starts_with("no stream accepts subject \"media.x\": create one"), "{missing}");
        assert_eq!(missing.kind, ErrorKind::NoSuchDestination);
    }
}
