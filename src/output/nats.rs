//! NATS, through async-nats.
//!
//! By JetStream a message is published when its stream acknowledges it; `Nats-Msg-Id` is made of the event's source
//! and id and of the subject, so that the stream drops a repeat within its duplicate window but keeps the same event
//! on two subjects. By core NATS a message is at most once, and only on demand: no one acknowledges it.
//!
//! The first connection is tried until it succeeds; async-nats reconnects by itself later.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::{self, ErrorCode, context::PublishErrorKind, message::PublishMessage, stream};
use async_nats::{Client, ConnectOptions, HeaderMap};
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{ErrorKind, Health, Output, PATIENCE, PublishError, Record, SECRETS_CHECK};
use crate::event::{Event, ID, Mode, SOURCE, nats};
use crate::route::Template;
use crate::setting::{Mistake, Secret, SecretSource, one_or_many};
use crate::telemetry::metrics::Metrics;

/// Waiting time between attempts to connect: doubles from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// How long a server may take to answer while it is connected to or asked for a sign of life.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How often the connection is checked by a ping; the default of a minute would let a dead peer look alive.
const PING_EVERY: Duration = Duration::from_secs(10);

/// How messages are delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NatsDelivery {
    /// Acknowledged by a stream.
    #[default]
    Jetstream,
    /// Not acknowledged: at most once.
    Core,
}

/// The stream that messages should end in.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StreamConfig {
    /// Its name.
    pub name: String,
    /// Subjects it takes; needed when it is created.
    #[serde(default, deserialize_with = "one_or_many")]
    pub subjects: Vec<String>,
    /// Whether to create it when it isn't there.
    #[serde(default)]
    pub create: bool,
}

/// Files of a TLS connection.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// Certificates of authorities to trust, in place of the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Certificate of this client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// Its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
}

/// Settings of a NATS output.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct NatsConfig {
    /// Servers, as `nats://host:port` or `tls://host:port`.
    #[serde(deserialize_with = "one_or_many")]
    pub servers: Vec<String>,
    /// How events are laid out.
    pub mode: Mode,
    /// Whether a stream acknowledges.
    pub delivery: NatsDelivery,
    /// User name, with `password`.
    pub user: Option<String>,
    /// Password of `user`.
    pub password: Option<SecretSource>,
    /// Token.
    pub token: Option<SecretSource>,
    /// NKey seed.
    pub nkey: Option<SecretSource>,
    /// File with a user's JWT and seed.
    pub credentials_file: Option<PathBuf>,
    /// TLS files; naming any demands TLS.
    pub tls: Option<TlsConfig>,
    /// The stream to check or create.
    pub stream: Option<StreamConfig>,
}

impl Default for NatsConfig {
    fn default() -> Self {
        NatsConfig {
            servers: vec!["nats://127.0.0.1:4222".to_owned()],
            mode: Mode::Structured,
            delivery: NatsDelivery::Jetstream,
            user: None,
            password: None,
            token: None,
            nkey: None,
            credentials_file: None,
            tls: None,
            stream: None,
        }
    }
}

impl NatsConfig {
    /// Checks the settings and reads secrets.
    ///
    /// # Errors
    /// Key below the output and what is wrong with it, for every mistake.
    pub fn validate(&self, name: &str) -> Result<NatsSettings, Vec<Mistake>> {
        let mut errors: Vec<Mistake> = Vec::new();
        let mut wrong = |key: &str, message: String| errors.push((key.to_owned(), message));
        if self.servers.is_empty() {
            wrong("servers", "expected at least one nats://host:port".to_owned());
        }
        let mut servers = Vec::new();
        for server in &self.servers {
            match server.parse::<async_nats::ServerAddr>() {
                Ok(address) if address.has_user_pass() => {
                    let message =
                        "logins don't stand in addresses, where they would be shown; set `user` and `password`";
                    wrong("servers", format!("`{}`: {message}", without_user(server)));
                }
                Ok(address) => servers.push(address),
                Err(error) => wrong("servers", format!("`{}` is no server address: {error}", without_user(server))),
            }
        }
        let mut ways = Vec::new();
        let mut read = |key: &str, source: &SecretSource| match Secret::read(source) {
            Ok(secret) => Some(secret),
            Err(error) => {
                wrong(key, error);
                None
            }
        };
        let mut login = Login::None;
        match (&self.user, &self.password) {
            (Some(user), Some(password)) => {
                ways.push("user");
                login = read("password", password).map_or(Login::None, |password| Login::User(user.clone(), password));
            }
            (None, None) => {}
            (Some(_), None) => wrong("user", "needs `password` beside it".to_owned()),
            (None, Some(_)) => wrong("password", "needs `user` beside it".to_owned()),
        }
        // The closure is made again because `wrong` was used in between.
        let mut read = |key: &str, source: &SecretSource| Secret::read(source).map_err(|error| wrong(key, error)).ok();
        if let Some(token) = &self.token {
            ways.push("token");
            login = read("token", token).map_or(Login::None, Login::Token);
        }
        if let Some(nkey) = &self.nkey {
            ways.push("nkey");
            login = read("nkey", nkey).map_or(Login::None, Login::NKey);
        }
        if let Some(file) = &self.credentials_file {
            ways.push("credentials_file");
            login = read("credentials_file", &SecretSource::File(file.clone())).map_or(Login::None, Login::Credentials);
        }
        if ways.len() > 1 {
            wrong(ways[1], format!("one way to log in is enough, but {} are set", ways.join(" and ")));
        }
        if let Some(tls) = &self.tls {
            for (key, file) in
                [("tls.ca_file", &tls.ca_file), ("tls.cert_file", &tls.cert_file), ("tls.key_file", &tls.key_file)]
            {
                if let Some(file) = file
                    && let Err(error) = std::fs::File::open(file)
                {
                    wrong(key, format!("{} can't be read: {error}", file.display()));
                }
            }
            if tls.cert_file.is_some() != tls.key_file.is_some() {
                wrong("tls", "`cert_file` and `key_file` go together".to_owned());
            }
        }
        if let Some(stream) = &self.stream {
            if self.delivery == NatsDelivery::Core {
                wrong("stream", "core NATS has no streams; leave it out or set delivery = \"jetstream\"".to_owned());
            }
            if stream.name.is_empty() || stream.name.contains(['.', '*', '>', ' ', '/', '\\']) {
                wrong("stream.name", format!("`{}` can't name a stream", stream.name));
            }
            if stream.create && stream.subjects.is_empty() {
                wrong("stream.subjects", "needed to create the stream, as [\"media.>\"]".to_owned());
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(NatsSettings {
            name: name.to_owned(),
            servers,
            mode: self.mode,
            delivery: self.delivery,
            login,
            tls: self.tls.clone(),
            stream: self.stream.clone(),
        })
    }
}

fn without_user(address: &str) -> String {
    match address.rsplit_once('@') {
        Some((_, host)) => format!("…@{host}"),
        None => address.to_owned(),
    }
}

#[derive(Debug)]
enum Login {
    None,
    User(String, Secret),
    Token(Secret),
    NKey(Secret),
    Credentials(Secret),
}

/// How to log in, with the secrets as they are now.
#[derive(Clone, PartialEq, Eq)]
enum PresentLogin {
    None,
    User(String, String),
    Token(String),
    NKey(String),
    Credentials(String),
}

impl Login {
    fn present(&self) -> PresentLogin {
        match self {
            Login::None => PresentLogin::None,
            Login::User(user, password) => PresentLogin::User(user.clone(), password.value()),
            Login::Token(token) => PresentLogin::Token(token.value()),
            Login::NKey(seed) => PresentLogin::NKey(seed.value()),
            // async-nats wants the end of the last line, which a secret's value doesn't have.
            Login::Credentials(file) => PresentLogin::Credentials(format!("{}\n", file.value())),
        }
    }
}

/// Checked settings of a NATS output.
#[derive(Debug)]
pub struct NatsSettings {
    name: String,
    servers: Vec<async_nats::ServerAddr>,
    mode: Mode,
    delivery: NatsDelivery,
    login: Login,
    tls: Option<TlsConfig>,
    stream: Option<StreamConfig>,
}

impl NatsSettings {
    /// Name of the output.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How events are laid out where a destination says nothing else.
    pub fn mode(&self) -> Mode {
        self.mode
    }
}

/// Checks what stands between the attributes of a subject.
pub(super) fn check_topic(topic: &Template) -> Result<(), String> {
    let text = topic.to_string();
    let legal = |c: char| c.is_ascii_graphic() && !matches!(c, '*' | '>');
    if let Some(literal) = topic.literals().find(|literal| !literal.chars().all(legal)) {
        return Err(format!("`{literal}` can't stand in a NATS subject: printable characters but `*` and `>` can"));
    }
    if text.starts_with('.') || text.ends_with('.') || text.contains("..") {
        return Err(format!("`{text}` has an empty token between its dots"));
    }
    if text.starts_with('$') {
        return Err(format!("`{text}` starts with `$`, which belongs to the server"));
    }
    Ok(())
}

/// Publishes to NATS. Dropping it ends its connection.
pub struct Nats {
    name: String,
    mode: Mode,
    delivery: NatsDelivery,
    shared: Arc<Shared>,
    watch: tokio::task::JoinHandle<()>,
}

impl fmt::Debug for Nats {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Nats").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.shared.health.close();
        self.watch.abort();
    }
}

#[derive(Debug)]
struct Shared {
    health: Health,
    connection: RwLock<Option<jetstream::Context>>,
    /// Number of the connection in use, counted from 1.
    generation: AtomicU64,
    /// The server's last complaint and when it came: it says why an acknowledgement doesn't come.
    complaint: Mutex<Option<(Instant, String)>>,
}

impl Shared {
    fn connection(&self) -> Option<jetstream::Context> {
        self.connection.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn complaint_since(&self, start: Instant) -> Option<String> {
        let complaint = self.complaint.lock().unwrap_or_else(PoisonError::into_inner);
        complaint.as_ref().filter(|(came, _)| *came >= start).map(|(_, words)| words.clone())
    }

    fn complain(&self, words: String) {
        *self.complaint.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), words));
    }
}

impl Nats {
    /// Starts to connect, in the background.
    pub fn start(settings: NatsSettings, metrics: &Metrics) -> Nats {
        let shared = Arc::new(Shared {
            health: Health::new(&settings.name, metrics),
            connection: RwLock::new(None),
            generation: AtomicU64::new(0),
            complaint: Mutex::default(),
        });
        let (name, mode, delivery) = (settings.name.clone(), settings.mode, settings.delivery);
        let watch = tokio::spawn(watch(settings, shared.clone()));
        Nats { name, mode, delivery, shared, watch }
    }
}

/// Connects and makes sure of the stream; then looks after the connection whenever a publish makes it doubtful, and
/// connects anew when the secret it logs in with has changed.
async fn watch(settings: NatsSettings, shared: Arc<Shared>) {
    loop {
        let mut pause = RETRY.0;
        let (login, client, context) = loop {
            let login = settings.login.present();
            match establish(&settings, &login, &shared).await {
                Ok((client, context)) => break (login, client, context),
                // While a new secret doesn't work, the connection of the old one goes on.
                Err(reason) if shared.connection().is_some() => {
                    tracing::warn!(output = settings.name, reason, "logging in with the new secret failed");
                }
                Err(reason) => shared.health.down(&reason),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        };
        shared.generation.fetch_add(1, Ordering::Relaxed);
        *shared.connection.write().unwrap_or_else(PoisonError::into_inner) = Some(context);
        shared.health.up();
        while settings.login.present() == login {
            if !shared.health.suspected(SECRETS_CHECK).await {
                continue;
            }
            match tokio::time::timeout(ANSWER_TIMEOUT, client.flush()).await {
                Ok(Ok(())) if client.connection_state() == State::Connected => shared.health.up(),
                Ok(_) => shared.health.down("not connected"),
                Err(_) => {
                    shared.health.down("the server doesn't answer");
                    // A peer that is gone without a word is found by reconnecting only.
                    let _ = client.force_reconnect().await;
                }
            }
        }
        tracing::info!(output = settings.name, "the secret has changed; logging in with it");
    }
}

/// Connects and makes sure of the stream.
async fn establish(
    settings: &NatsSettings,
    login: &PresentLogin,
    shared: &Arc<Shared>,
) -> Result<(Client, jetstream::Context), String> {
    let client = connect(settings, login, shared).await?;
    let mut context = jetstream::new(client.clone());
    ensure_stream(&context, settings.stream.as_ref(), settings.delivery).await?;
    // Acknowledgements are waited for until the deadline of each record, which is no longer than this.
    context.set_timeout(PATIENCE);
    Ok((client, context))
}

async fn connect(settings: &NatsSettings, login: &PresentLogin, shared: &Arc<Shared>) -> Result<Client, String> {
    let events = shared.clone();
    let generation = shared.generation.load(Ordering::Relaxed) + 1;
    let mut options = ConnectOptions::new()
        .name("apsara-bridge")
        .connection_timeout(ANSWER_TIMEOUT)
        .ping_interval(PING_EVERY)
        .event_callback(move |event| {
            let shared = events.clone();
            async move {
                tracing::debug!(output = %shared.health.name, %event, "nats");
                // What becomes of a connection that another has replaced says nothing of that one.
                if shared.generation.load(Ordering::Relaxed) > generation {
                    return;
                }
                match event {
                    async_nats::Event::Connected if shared.connection().is_some() => shared.health.up(),
                    async_nats::Event::Disconnected => {
                        let recently = Instant::now().checked_sub(PING_EVERY);
                        let complaint = recently.and_then(|recently| shared.complaint_since(recently));
                        shared.health.down(complaint.as_deref().unwrap_or("disconnected"));
                    }
                    async_nats::Event::ServerError(error) => shared.complain(error.to_string()),
                    async_nats::Event::ClientError(error) => shared.complain(error.to_string()),
                    _ => {}
                }
            }
        });
    options = match login.clone() {
        PresentLogin::None => options,
        PresentLogin::User(user, password) => options.user_and_password(user, password),
        PresentLogin::Token(token) => options.token(token),
        PresentLogin::NKey(seed) => options.nkey(seed),
        PresentLogin::Credentials(text) => {
            options.credentials(&text).map_err(|error| format!("the credentials file is malformed: {error}"))?
        }
    };
    if let Some(tls) = &settings.tls {
        options = options.require_tls(true);
        if let Some(ca) = &tls.ca_file {
            options = options.add_root_certificates(ca.clone());
        }
        if let (Some(cert), Some(key)) = (&tls.cert_file, &tls.key_file) {
            options = options.add_client_certificate(cert.clone(), key.clone());
        }
    }
    options.connect(settings.servers.as_slice()).await.map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        let text = error.to_string();
        if text.contains(cause.trim_start_matches(": ")) { text } else { format!("{text}{cause}") }
    })
}

/// Makes sure that the stream is there, or that JetStream is where none is named.
async fn ensure_stream(
    context: &jetstream::Context,
    stream: Option<&StreamConfig>,
    delivery: NatsDelivery,
) -> Result<(), String> {
    if delivery == NatsDelivery::Core {
        return Ok(());
    }
    let Some(wanted) = stream else {
        return context.query_account().await.map(|_| ()).map_err(|error| format!("JetStream doesn't answer: {error}"));
    };
    if wanted.create {
        let config = stream::Config {
            name: wanted.name.clone(),
            subjects: wanted.subjects.clone(),
            ..stream::Config::default()
        };
        // A stream that is there keeps its settings: it may have been tuned.
        let found = context.get_or_create_stream(config).await;
        return found.map(|_| ()).map_err(|error| format!("stream `{}` can't be created: {error}", wanted.name));
    }
    match context.get_stream(&wanted.name).await {
        Ok(_) => Ok(()),
        Err(error) => {
            Err(format!("stream `{}` is not there: {error}; create it, or set `stream.create = true`", wanted.name))
        }
    }
}

/// The id by which a stream knows a repeat.
pub fn message_id(event: &Event, subject: &str) -> String {
    let part = |attribute| event.get(attribute).unwrap_or_default();
    nats::percent_encode(&format!("{}|{}|{subject}", part(&SOURCE), part(&ID))).into_owned()
}

impl Output for Nats {
    fn name(&self) -> &str {
        &self.name
    }

    fn publish<'a>(&'a self, record: &'a Record, deadline: Instant) -> BoxFuture<'a, Result<(), PublishError>> {
        Box::pin(async move {
            let started = Instant::now();
            let down = || PublishError::new(ErrorKind::Unavailable, "not connected");
            // A message handed to a client without a connection would wait in its buffer, past any deadline.
            let context = self.shared.connection().filter(|_| self.shared.health.is_up()).ok_or_else(down)?;
            let mode = record.mode.unwrap_or(self.mode);
            let mut headers = HeaderMap::new();
            for (name, value) in nats::headers(&record.event, mode) {
                headers.insert(name, value.as_ref());
            }
            let payload = nats::payload(&record.event, mode);
            let sent = async {
                match self.delivery {
                    NatsDelivery::Jetstream => {
                        let message = PublishMessage::build()
                            .payload(payload)
                            .headers(headers)
                            .message_id(message_id(&record.event, &record.topic));
                        let ack = context.send_publish(record.topic.clone(), message).await.map_err(jetstream_error)?;
                        ack.await.map(|_| ()).map_err(jetstream_error)
                    }
                    NatsDelivery::Core => {
                        let client = context.client();
                        client.publish_with_headers(record.topic.clone(), headers, payload).await.map_err(|error| {
                            let kind = match error.kind() {
                                async_nats::client::PublishErrorKind::MaxPayloadExceeded => ErrorKind::TooLarge,
                                async_nats::client::PublishErrorKind::InvalidSubject => ErrorKind::Rejected,
                                _ => ErrorKind::Unavailable,
                            };
                            PublishError::new(kind, error)
                        })?;
                        client.flush().await.map_err(|error| PublishError::new(ErrorKind::Unavailable, error))
                    }
                }
            };
            let result = tokio::time::timeout_at(deadline, sent).await.unwrap_or_else(|_| {
                Err(PublishError::new(ErrorKind::TimedOut, "no acknowledgement before the deadline"))
            });
            result.map_err(|error| self.explained(error, &record.topic, started))
        })
    }

    fn health(&self) -> &Health {
        &self.shared.health
    }
}

impl Nats {
    /// A missing permission shows as silence on the reply and as a complaint beside it.
    fn explained(&self, error: PublishError, subject: &str, started: Instant) -> PublishError {
        if !error.kind.is_retriable() {
            return error;
        }
        let violation =
            |words: &String| words.to_lowercase().contains("permissions violation") && words.contains(subject);
        if let Some(complaint) = self.shared.complaint_since(started).filter(violation) {
            return PublishError::new(ErrorKind::Unauthorized, complaint);
        }
        self.shared.health.suspect();
        error
    }
}

fn jetstream_error(error: jetstream::context::PublishError) -> PublishError {
    let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<jetstream::Error>());
    let kind = match (error.kind(), source) {
        (PublishErrorKind::TimedOut, _) => ErrorKind::TimedOut,
        (PublishErrorKind::StreamNotFound, _) => ErrorKind::NoSuchDestination,
        (PublishErrorKind::MaxPayloadExceeded, _) => ErrorKind::TooLarge,
        (PublishErrorKind::MaxAckPending, _) => ErrorKind::QueueFull,
        (PublishErrorKind::BrokenPipe, _) => ErrorKind::Unavailable,
        (_, Some(answer)) => match answer.error_code() {
            ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM | ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM => ErrorKind::TooLarge,
            // A full stream or a full store has room again when messages are taken or expire.
            ErrorCode::STREAM_STORE_FAILED => ErrorKind::Unavailable,
            _ if answer.code() >= 500 => ErrorKind::Unavailable,
            _ => ErrorKind::Rejected,
        },
        (_, None) => ErrorKind::Unavailable,
    };
    match source {
        Some(answer) => PublishError::new(kind, answer),
        None => PublishError::new(kind, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_told_without_secrets() {
        let config: NatsConfig = toml::from_str(
            "servers = ['nats://user:hunter2@ho st']\nuser = 'me'\ntoken = 'hunter2'\ndelivery = 'core'\n\
             stream = { name = 'A B', create = true }\ntls = { ca_file = '/nonexistent/ca.pem' }",
        )
        .expect("the form is right");
        let errors = config.validate("nats").expect_err("must be refused");
        let told: Vec<String> = errors.into_iter().map(|(key, error)| format!("{key}: {error}")).collect();
        let told = told.join("\n");
        for expected in [
            "servers: `…@ho st` is no server address",
            "user: needs `password` beside it",
            "tls.ca_file: /nonexistent/ca.pem can't be read",
            "stream: core NATS has no streams",
            "stream.name: `A B` can't name a stream",
            "stream.subjects: needed to create the stream",
        ] {
            assert!(told.contains(expected), "{expected} not in:\n{told}");
        }
        assert!(!told.contains("hunter2"), "{told}");
    }

    #[test]
    fn subjects_follow_the_rules_of_nats() {
        let check = |topic: &str| check_topic(&Template::parse_topic(topic).expect("valid"));
        assert_eq!(check("media.{status}"), Ok(()));
        for wrong in ["media.>", "media..x", "media.", "$JS.x", "a b.{status}"] {
            assert!(check(wrong).is_err(), "{wrong}");
        }
    }
}
