//! A NATS server that somebody runs: the demo publishes to a stream of its own, which is deleted at the end.

use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

use async_nats::jetstream::stream::{Config, DeleteStatus, StorageType};
use async_nats::jetstream::{Context, ErrorCode, context::DeleteStreamErrorKind};
use async_nats::{ConnectOptions, ServerAddr};
use percent_encoding::percent_decode_str;
use serde::Deserialize;

use super::{Found, MAX_WAIT, TOPICS};

/// How long the server may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How long the messages of a demo are kept that was killed.
const MAX_AGE: Duration = Duration::from_secs(60 * 60);

/// A server with JetStream, and the names that one run uses there.
#[derive(Clone)]
pub(super) struct Server {
    address: ServerAddr,
    /// The stream. It is in memory, so that nothing stays if the demo is killed and the server restarts.
    stream: String,
    /// What its subjects begin with.
    prefix: String,
}

enum Login {
    None,
    Token(String),
    User(String, String),
}

impl Server {
    /// Reads `nats://user:password@host:port` or `nats://token@host:port`; the login may be missing.
    ///
    /// # Errors
    /// What is wrong, without the login.
    pub(super) fn parse(url: &str) -> Result<Server, String> {
        let shown = url.rsplit_once('@').map_or_else(|| url.to_owned(), |(_, host)| format!("…@{host}"));
        let invalid = |why: &str| format!("invalid url `{shown}`: expected nats://host:port{why}");
        let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
        // Such a character ends the host. The rest of a password would be looked up and shown as one.
        if rest.find(['/', '?', '#']).is_some_and(|end| rest[end..].contains('@')) {
            return Err(invalid("; in a login, write / as %2F, ? as %3F, # as %23 and @ as %40"));
        }
        let address: ServerAddr = url.parse().map_err(|error| invalid(&format!(" ({error})")))?;
        if !matches!(address.scheme(), "nats" | "tls") {
            return Err(invalid(""));
        }
        // The names of each run are its own: the demos of several people do not meet.
        let run = RandomState::new().hash_one(0) as u32;
        let (stream, prefix) = (format!("APSARA_BRIDGE_DEMO_{run:08x}"), format!("apsara-bridge-demo-{run:08x}."));
        Ok(Server { address, stream, prefix })
    }

    /// What the subjects begin with.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A command that reads the events. The login is left out, because a terminal or a log shows the command.
    pub(super) fn reader(&self) -> String {
        let subscribe = format!("subscribe '{}>'", self.prefix);
        match self.login() {
            Login::None => format!("nats --server {} {subscribe}", self.url()),
            _ => {
                let url = self.url().replacen("://", "://LOGIN@", 1);
                format!("nats --server {url} {subscribe}     (LOGIN is the one of your URL)")
            }
        }
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
        let mut text =
            format!("kind = \"nats\"\nservers = [\"{}\"]\nstream = {{ name = \"{}\" }}", self.url(), self.stream);
        let quoted = |text: String| toml::Value::String(text).to_string();
        match self.login() {
            Login::None => {}
            Login::Token(token) => text.push_str(&format!("\ntoken = {}", quoted(token))),
            Login::User(user, password) => {
                text.push_str(&format!("\nuser = {}\npassword = {}", quoted(user), quoted(password)));
            }
        }
        text
    }

    fn login(&self) -> Login {
        let decoded = |part: &str| percent_decode_str(part).decode_utf8_lossy().into_owned();
        match (self.address.username(), self.address.password()) {
            (None, _) => Login::None,
            (Some(token), None) => Login::Token(decoded(token)),
            (Some(user), Some(password)) => Login::User(decoded(user), decoded(password)),
        }
    }

    async fn jetstream(&self) -> Result<Context, String> {
        let mut options = ConnectOptions::new().name("apsara-bridge demo").connection_timeout(TIMEOUT);
        options = match self.login() {
            Login::None => options,
            Login::Token(token) => options.token(token),
            Login::User(user, password) => options.user_and_password(user, password),
        };
        let client = options.connect(self.url()).await.map_err(|error| format!("{}: {error}", self.url()))?;
        let mut context = async_nats::jetstream::new(client);
        context.set_timeout(TIMEOUT);
        Ok(context)
    }

    /// Creates the stream.
    ///
    /// # Errors
    /// A sentence.
    pub(super) async fn prepare(&self) -> Result<(), String> {
        let context = self.jetstream().await?;
        let config = Config {
            name: self.stream.clone(),
            subjects: vec![format!("{}>", self.prefix)],
            storage: StorageType::Memory,
            max_age: MAX_AGE,
            num_replicas: 1,
            ..Config::default()
        };
        let Err(error) = context.create_stream(config).await else { return Ok(()) };
        let (url, stream, prefix) = (self.url(), &self.stream, &self.prefix);
        Err(match context.stream_by_subject(format!("{prefix}{}", TOPICS[0])).await {
            Ok(other) => format!(
                "{url}: stream {stream} cannot be created, because the stream {other} of this server accepts the \
                 subjects {prefix}> too; use another server or account"
            ),
            Err(_) => format!("{url}: stream {stream} cannot be created: {error}; is JetStream on?"),
        })
    }

    /// Deletes the stream.
    ///
    /// # Errors
    /// A sentence.
    pub(super) async fn clean(&self) -> Result<(), String> {
        match self.jetstream().await?.delete_stream(&self.stream).await {
            Ok(DeleteStatus { .. }) => Ok(()),
            Err(error) => match error.kind() {
                DeleteStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(()),
                _ => Err(format!("{}: stream {} cannot be deleted: {error}", self.url(), self.stream)),
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
        let cannot = |error: &dyn std::fmt::Display| format!("stream {} cannot be read: {error}", self.stream);
        let mut stream = self.jetstream().await?.get_stream(&self.stream).await.map_err(|error| cannot(&error))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_a_user_or_a_token_and_is_not_shown() {
        let server = |url: &str| Server::parse(url).unwrap_or_else(|error| panic!("{url}: {error}"));
        let plain = server("127.0.0.1");
        assert_eq!(plain.reader(), format!("nats --server nats://127.0.0.1:4222 subscribe '{}>'", plain.prefix()));
        assert_ne!(plain.prefix(), server("127.0.0.1").prefix(), "each run has its own subjects");
        assert!(server("nats://t%2Fok@h").output().contains("\ntoken = \"t/ok\""));
        let user = server("tls://me:pa%40ss@h:1");
        assert!(user.output().contains("\nuser = \"me\"\npassword = \"pa@ss\""), "{}", user.output());
        assert!(user.reader().starts_with("nats --server tls://LOGIN@h:1 subscribe '"), "{}", user.reader());
        for url in ["nats://u:p@ss/w:rd@host", "u:p/w@host", "nats://u:p?w@host", "nats://u:p#w@host:1"] {
            let error = Server::parse(url).err().expect("refused");
            assert!(error.contains("…@host") && error.contains("write / as %2F"), "{error}");
            assert!(!error.contains("ss") && !error.contains("p/") && !error.contains("p?"), "{error}");
        }
    }
}
