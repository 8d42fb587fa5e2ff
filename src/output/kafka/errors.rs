//! What each error code of librdkafka and of Kafka's brokers means for a record, in one table.
//!
//! A code that is not in the table is transient: an error that nobody knows must not cost an event.

use rdkafka::error::RDKafkaErrorCode::{self, *};

use crate::output::ErrorKind::{self, *};

/// Codes, their kind, and why. Codes that only consumers, groups, transactions or administration can meet are left
/// out.
const CODES: &[(ErrorKind, &str, &[RDKafkaErrorCode])] = &[
    (
        TimedOut,
        "no answer came in time; the record may have arrived",
        &[MessageTimedOut, RequestTimedOut, OperationTimedOut, TimedOutQueue],
    ),
    (ErrorKind::QueueFull, "the queue of the client is full", &[RDKafkaErrorCode::QueueFull]),
    (
        Unavailable,
        "no connection to the broker, or the connection was lost",
        &[
            BrokerDestroy,
            BrokerTransportFailure,
            Resolve,
            AllBrokersDown,
            NodeUpdate,
            SSL,
            DestroyBroker,
            UnknownBroker,
            NetworkException,
            BrokerNotAvailable,
            RebootstrapRequired,
        ],
    ),
    (
        Unavailable,
        "the partition has no leader at the moment, or a different one",
        &[
            LeaderNotAvailable,
            NotLeaderForPartition,
            ReplicaNotAvailable,
            FencedLeaderEpoch,
            UnknownLeaderEpoch,
            StaleControllerEpoch,
            StaleBrokerEpoch,
            NotController,
            ReassignmentInProgress,
            UnknownTopicId,
        ],
    ),
    (
        Unavailable,
        "fewer replicas are in sync than min.insync.replicas demands",
        &[ISRInsufficient, NotEnoughReplicas, NotEnoughReplicasAfterAppend],
    ),
    (Unavailable, "the disk of the broker fails; another replica takes over", &[KafkaStorageError, LogDirNotFound]),
    (Unavailable, "a quota throttles the client", &[ThrottlingQuotaExceeded]),
    (
        Unavailable,
        "the state of this producer is lost; a new producer takes its place",
        &[
            Fatal,
            Fenced,
            ProducerFenced,
            GaplessGuarantee,
            Inconsistent,
            State,
            OutOfOrderSequenceNumber,
            DuplicateSequenceNumber,
            InvalidProducerEpoch,
            InvalidProducerIdMapping,
            UnknownProducerId,
            PurgeQueue,
            PurgeInflight,
        ],
    ),
    (Unavailable, "another record of the same batch was refused", &[InvalidDifferentRecord]),
    (
        Unavailable,
        "the request or its answer was damaged on the way",
        &[BadMessage, InvalidMessage, InvalidMessageSize],
    ),
    (
        Unavailable,
        "an error of the client or the broker that says nothing about the record",
        &[
            Fail,
            CriticalSystemResource,
            FileSystem,
            InProgress,
            PreviousInProgress,
            Conflict,
            WaitCache,
            Interrupted,
            Partial,
            Underflow,
            Retry,
            Unknown,
            CoordinatorLoadInProgress,
            CoordinatorNotAvailable,
            NotCoordinator,
        ],
    ),
    (
        NoSuchDestination,
        "the topic or partition does not exist, or not all brokers know it yet",
        &[UnknownTopic, UnknownTopicOrPartition, UnknownPartition, InvalidTopic],
    ),
    (
        Unauthorized,
        "the broker does not accept the login, or the user may not write to the topic",
        &[
            Authentication,
            SaslAuthenticationFailed,
            IllegalSASLState,
            TopicAuthorizationFailed,
            ClusterAuthorizationFailed,
            TransactionalIdAuthorizationFailed,
            DelegationTokenAuthDisabled,
            DelegationTokenNotFound,
            DelegationTokenOwnerMismatch,
            DelegationTokenRequestNotAllowed,
            DelegationTokenAuthorizationFailed,
            DelegationTokenExpired,
            InvalidPrincipalType,
            SecurityDisabled,
        ],
    ),
    (
        Misconfigured,
        "the settings of the client and the broker do not match",
        &[
            InvalidArgument,
            InvalidConfig,
            InvalidRequest,
            InvalidRequiredAcks,
            NotConfigured,
            NotImplemented,
            UnknownProtocol,
            UnsupportedFeature,
            UnsupportedVersion,
            UnsupportedSASLMechanism,
            UnsupportedCompressionType,
            UnsupportedForMessageFormat,
            BadCompression,
            PolicyViolation,
            InvalidTimestamp,
        ],
    ),
    // For a batch of several records, see `is_about_the_batch`.
    (TooLarge, "the record is larger than the topic or the client accepts", BATCH_TOO_LARGE),
    (Rejected, "the broker refuses the content of the record", &[InvalidRecord, KeySerialization, ValueSerialization]),
];

const BATCH_TOO_LARGE: &[RDKafkaErrorCode] = &[MessageSizeTooLarge, MessageBatchTooLarge];

/// Whether an error of a broker is about the batch that a record was sent in. The same record may be accepted in a
/// batch of its own.
pub(super) fn is_about_the_batch(code: RDKafkaErrorCode) -> bool {
    BATCH_TOO_LARGE.contains(&code)
}

/// What an error means for the record.
pub(super) fn kind_of(code: RDKafkaErrorCode) -> ErrorKind {
    CODES.iter().find(|(_, _, codes)| codes.contains(&code)).map_or(Unavailable, |(kind, ..)| *kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::ErrorClass;

    #[test]
    fn each_code_is_listed_once_and_unknown_ones_are_transient() {
        let all: Vec<&RDKafkaErrorCode> = CODES.iter().flat_map(|(_, _, codes)| *codes).collect();
        for (index, code) in all.iter().enumerate() {
            assert!(!all[..index].contains(code), "{code:?} is listed twice");
        }
        assert!(CODES.iter().all(|(_, why, _)| !why.is_empty()));
        assert_eq!(kind_of(PollExceeded).class(), ErrorClass::Transient);
    }

    #[test]
    fn only_errors_that_never_pass_are_permanent() {
        let permanent = CODES.iter().filter(|(kind, ..)| kind.class() == ErrorClass::Permanent);
        let permanent: Vec<&RDKafkaErrorCode> = permanent.flat_map(|(_, _, codes)| *codes).collect();
        assert_eq!(permanent.len(), 5, "{permanent:?}");
        for code in [UnknownTopicOrPartition, TopicAuthorizationFailed, UnsupportedVersion] {
            assert_eq!(kind_of(code).class(), ErrorClass::Operator);
        }
        for code in [NotEnoughReplicas, NotEnoughReplicasAfterAppend, ThrottlingQuotaExceeded, LeaderNotAvailable] {
            assert_eq!(kind_of(code).class(), ErrorClass::Transient);
        }
    }
}
