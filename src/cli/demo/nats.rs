//! A NATS server that somebody runs: the demo publishes to a stream of its own, which is deleted at the end.

use std::time::{Duration, Instant};

use async_nats::jetstream::stream::DeleteStatus;
use async_nats::jetstream::{Context, ErrorCode, context::DeleteStreamErrorKind};
use async_nats::{ConnectOptions, ServerAddr};
use percent_encoding::percent_decode_str;
use serde::Deserialize;

use super::{Found, MAX_WAIT};

/// What subjects begin with.
pub(super) const PREFIX: &str = "apsara-bridge-demo.";

/// The stream. Its messages are in memory, so that nothing stays if the demo is killed and the server restarts.
const STREAM: &str = "APSARA_BRIDGE_DEMO";

/// How long the server may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A server with JetStream.
#[derive(Clone)]
pub(super) struct Server {
    address: ServerAddr,
}

impl Server {
    /// Reads `nats://user:password@host:port`; the login may be missing.
    ///
    /// # Errors
    /// What is wrong, without the login.
    pub(super) fn parse(url: &str) -> Result<Server, String> {
        let shown = url.rsplit_once('@').map_or_else(|| url.to_owned(), |(_, host)| format!("…@{host}"));
        let invalid = |why: String| format!("invalid url `{shown}`: expected nats://host:port{why}");
        let address: ServerAddr = url.parse().map_err(|error| invalid(format!(" ({error})")))?;
        if matches!(address.scheme(), "nats" | "tls") { Ok(Server { address }) } else { Err(invalid(String::new())) }
    }

    /// The address without the login.
    pub(super) fn url(&self) -> String {
        let scheme = if self.address.tls_required() { "tls" } else { "nats" };
        let host = self.address.host();
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        format!("{scheme}://{host}:{}", self.address.port())
    }

    /// The output that publishes to it, as a user would write it.
    pub(super) fn output(&self) -> String {
        let mut text = format!(
            "kind = \"nats\"\nservers = [\"{}\"]\nstream = {{ name = \"{STREAM}\", subjects = [\"{PREFIX}>\"], create = true, \
             replicas = 1, storage = \"memory\", max_age = \"1h\" }}",
            self.url()
        );
        if let (Some(user), Some(password)) = self.login() {
            let quoted = |text: String| toml::Value::String(text).to_string();
            text.push_str(&format!("\nuser = {}\npassword = {}", quoted(user), quoted(password)));
        }
        text
    }

    fn login(&self) -> (Option<String>, Option<String>) {
        let is_given = self.address.has_user_pass();
        let decoded = |part: &str| percent_decode_str(part).decode_utf8_lossy().into_owned();
        let part = |part: Option<&str>| part.filter(|_| is_given).map(decoded);
        (part(self.address.username()), part(self.address.password()))
    }

    async fn jetstream(&self) -> Result<Context, String> {
        let mut options = ConnectOptions::new().name("apsara-bridge demo").connection_timeout(TIMEOUT);
        if let (Some(user), Some(password)) = self.login() {
            options = options.user_and_password(user, password);
        }
        let client = options.connect(self.url()).await.map_err(|error| format!("{}: {error}", self.url()))?;
        let mut context = async_nats::jetstream::new(client);
        context.set_timeout(TIMEOUT);
        Ok(context)
    }

    /// Deletes the stream, which an earlier demo may have left.
    ///
    /// # Errors
    /// A sentence.
    pub(super) async fn clean(&self) -> Result<(), String> {
        match self.jetstream().await?.delete_stream(STREAM).await {
            Ok(DeleteStatus { .. }) => Ok(()),
            Err(error) => match error.kind() {
                DeleteStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(()),
                _ => Err(format!("{}: stream {STREAM} cannot be deleted: {error}; is JetStream on?", self.url())),
            },
        }
    }

    /// Reads the stream from its start until the expected number of messages has arrived.
    ///
    /// # Errors
    /// A sentence.
    pub(super) async fn read_back(&self, expected: usize) -> Result<Vec<Found>, String> {
        #[derive(Deserialize)]
        struct Envelope {
            id: String,
        }
        let cannot = |error: &dyn std::fmt::Display| format!("stream {STREAM} cannot be read: {error}");
        let mut stream = self.jetstream().await?.get_stream(STREAM).await.map_err(|error| cannot(&error))?;
        let start = Instant::now();
        let mut last = 0;
        while last < expected as u64 && start.elapsed() < MAX_WAIT {
            last = stream.info().await.map_err(|error| cannot(&error))?.state.last_sequence;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mut found = Vec::new();
        for sequence in 1..=last {
            let message = stream.get_raw_message(sequence).await.map_err(|error| cannot(&error))?;
            let envelope: Envelope = serde_json::from_slice(&message.payload).map_err(|error| cannot(&error))?;
            let place = format!("sequence {sequence}");
            found.push(Found { id: envelope.id, topic: message.subject.to_string(), place });
        }
        Ok(found)
    }
}
