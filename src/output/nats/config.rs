//! Settings of a NATS output: what the configuration says, checked, with its secrets.

use std::path::PathBuf;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::stream_config::{StreamConfig, is_pattern};
use crate::common::address::is_loopback;
use crate::common::secret::{Secret, SecretSource};
use crate::common::tls::{TlsConfig, TlsFiles as _};
use crate::common::units::{at_least_one_schema, one_or_many};
use crate::common::validation::Validation;
use crate::common::watch::{Fingerprint, ReadByLibrary};
use crate::event::Mode;
use crate::output::{Bus, DestinationRules, OutputConfig, OutputContext, OutputSettings, TopicRule, TopicSyntax};

/// How messages are delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NatsDelivery {
    /// An event is published when a stream of JetStream acknowledges it.
    #[default]
    Jetstream,
    /// Core NATS, at most once. Nobody acknowledges: events that were answered with 200 can be lost.
    Core,
}

/// Subjects of NATS.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct NatsConfig {
    /// The servers to connect to first: at least one. They are written as `nats://host:port`, or as `tls://host:port` to
    /// require TLS. An address has no user and no password.
    #[serde(deserialize_with = "one_or_many")]
    #[schemars(schema_with = "at_least_one_schema::<String>")]
    pub servers: Vec<String>,
    /// The layout of the messages, by the CloudEvents binding for NATS.
    pub mode: Mode,
    /// Who acknowledges a message.
    pub delivery: NatsDelivery,
    /// The user name. It needs `password`. At most one login can be set: `user`, `token`, `nkey` or `credentials_file`.
    /// Default: none.
    pub user: Option<String>,
    /// The password of `user`. Default: none.
    pub password: Option<SecretSource>,
    /// The token to log in with. Default: none.
    pub token: Option<SecretSource>,
    /// The seed of the NKey to log in with. Default: none.
    pub nkey: Option<SecretSource>,
    /// The credentials file to log in with. It contains a JWT and a seed. Default: none.
    pub credentials_file: Option<PathBuf>,
    /// The first tokens of the subjects on which the bridge receives answers. Its user needs the permission to subscribe to
    /// all subjects below.
    pub inbox_prefix: String,
    /// The files for TLS. If one is set, TLS is required. Default: none.
    pub tls: Option<TlsConfig>,
    /// The stream that must exist before the output is ready. Default: none, only JetStream itself must answer.
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
            inbox_prefix: "_INBOX".to_owned(),
            tls: None,
            stream: None,
        }
    }
}

impl NatsConfig {
    fn servers(&self, validation: &mut Validation) -> Vec<async_nats::ServerAddr> {
        if self.servers.is_empty() {
            validation.wrong("servers", "expected at least one nats://host:port");
        }
        let mut servers = Vec::new();
        for server in &self.servers {
            let shown = without_user(server);
            match server.parse::<async_nats::ServerAddr>() {
                Ok(address) if address.has_user_pass() => {
                    let message = "a login in an address would be shown in logs; set `user` and `password` instead";
                    validation.wrong("servers", format!("`{shown}`: {message}"));
                }
                Ok(address) => servers.push(address),
                Err(error) => {
                    let message = format!("invalid address `{shown}`: expected nats://host:port ({error})");
                    validation.wrong("servers", message);
                }
            }
        }
        servers
    }

    /// A secret that is sent as it is over connections that need no TLS. An NKey and a credentials file are not: they sign
    /// what the server asks.
    fn weakness(&self) -> Option<String> {
        let sent = self.password.as_ref().map(|_| "password").or(self.token.as_ref().map(|_| "token"))?;
        let servers = self.servers.iter().filter_map(|server| server.parse::<async_nats::ServerAddr>().ok());
        let mut open = servers.filter(|server| !server.tls_required() && !is_loopback(server.host()));
        open.next().filter(|_| self.tls.is_none()).map(|_| {
            format!(
                "{sent}: over nats://, others can read it, because TLS is not required; write the servers as \
                 tls://host:port"
            )
        })
    }

    fn login(&self, validation: &mut Validation) -> Login {
        let mut ways = Vec::new();
        let mut login = Login::None;
        match (&self.user, &self.password) {
            (Some(user), Some(password)) => {
                ways.push("user");
                let password = validation.secret("password", password);
                login = password.map_or(Login::None, |password| Login::User(user.clone(), password));
            }
            (None, None) => {}
            (Some(_), None) => validation.wrong("user", "needs `password` too"),
            (None, Some(_)) => validation.wrong("password", "needs `user` too"),
        }
        if let Some(token) = &self.token {
            ways.push("token");
            login = validation.secret("token", token).map_or(Login::None, Login::Token);
        }
        if let Some(nkey) = &self.nkey {
            ways.push("nkey");
            login = validation.secret("nkey", nkey).map_or(Login::None, Login::NKey);
        }
        if let Some(file) = &self.credentials_file {
            ways.push("credentials_file");
            let file = SecretSource::File(file.clone());
            login = validation.secret("credentials_file", &file).map_or(Login::None, Login::Credentials);
        }
        if ways.len() > 1 {
            validation.wrong(ways[1], format!("expected one way to log in, but {} are set", ways.join(" and ")));
        }
        login
    }
}

impl OutputConfig for NatsConfig {
    fn validate(&self, context: OutputContext<'_>, validation: &mut Validation) -> Option<Box<dyn OutputSettings>> {
        let servers = self.servers(validation);
        let login = self.login(validation);
        if !is_pattern(&self.inbox_prefix) || self.inbox_prefix.contains(['*', '>']) {
            let message = format!("invalid subject `{}`: expected one without wildcards", self.inbox_prefix);
            validation.wrong("inbox_prefix", message);
        }
        if let Some(tls) = &self.tls {
            tls.check(validation);
        }
        let files = self.tls.as_ref().map(TlsConfig::files).unwrap_or_default();
        let files = Arc::new(ReadByLibrary::new("certificate of a NATS client", files));
        validation.watch(files.clone());
        if let Some(stream) = &self.stream {
            if self.delivery == NatsDelivery::Core {
                validation.wrong("stream", "core NATS has no streams; leave it out or set delivery = \"jetstream\"");
            }
            stream.check(validation);
        }
        validation.is_ok().then(|| {
            Box::new(NatsSettings {
                name: context.name.to_owned(),
                servers,
                mode: self.mode,
                delivery: self.delivery,
                login,
                inbox_prefix: self.inbox_prefix.clone(),
                tls: self.tls.clone(),
                files,
                stream: self.stream.clone(),
            }) as Box<dyn OutputSettings>
        })
    }

    fn destination_rules(&self) -> DestinationRules {
        const SUBJECT: TopicSyntax = TopicSyntax {
            is_legal: |c| c.is_ascii_graphic() && !matches!(c, '*' | '>'),
            legal: "printable ASCII characters except `*` and `>`",
            max_bytes: None,
            fault: |subject| {
                if subject.starts_with('.') || subject.ends_with('.') || subject.contains("..") {
                    Some("it has an empty token between its dots")
                } else {
                    subject.starts_with('$').then_some("subjects that start with `$` belong to the server")
                }
            },
        };
        DestinationRules { has_keys: false, topic: TopicRule::Required(SUBJECT) }
    }

    fn warnings(&self, name: &str, topics: &[String]) -> Vec<String> {
        let mut warnings = Vec::new();
        warnings.extend(self.weakness().map(|weakness| format!("output `{name}`: {weakness}")));
        let key = self.tls.as_ref().and_then(TlsConfig::warning);
        warnings.extend(key.map(|warning| format!("output `{name}`: {warning}")));
        if self.delivery == NatsDelivery::Core {
            warnings.push(format!(
                "output `{name}` delivers by core NATS, at most once: events that were answered with 200 can be lost"
            ));
        }
        let Some(stream) = &self.stream else { return warnings };
        warnings.extend(stream.warning(name));
        if stream.subjects.is_empty() {
            return warnings;
        }
        let mut outside: Vec<&String> = topics.iter().filter(|topic| !stream.may_take(topic)).collect();
        outside.sort_unstable();
        outside.dedup();
        warnings.extend(outside.into_iter().map(|topic| {
            format!(
                "output `{name}`: subject `{topic}` is not one of stream.subjects ({}); another stream has to take it",
                stream.subjects.join(", ")
            )
        }));
        warnings
    }

    fn effective(&self) -> Result<toml::Table, toml::ser::Error> {
        toml::Table::try_from(self)
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
    User(String, Arc<Secret>),
    Token(Arc<Secret>),
    NKey(Arc<Secret>),
    Credentials(Arc<Secret>),
}

/// How to log in, with the secrets as they are now.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum PresentLogin {
    None,
    User(String, Arc<str>),
    Token(Arc<str>),
    NKey(Arc<str>),
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
    pub(super) name: String,
    pub(super) servers: Vec<async_nats::ServerAddr>,
    pub(super) mode: Mode,
    pub(super) delivery: NatsDelivery,
    login: Login,
    pub(super) inbox_prefix: String,
    pub(super) tls: Option<TlsConfig>,
    /// The files of `tls`.
    files: Arc<ReadByLibrary>,
    pub(super) stream: Option<StreamConfig>,
}

/// What a client logs in with, as it is now.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Present {
    pub(super) login: PresentLogin,
    files: Vec<Fingerprint>,
}

impl NatsSettings {
    /// Where subscribers find the messages.
    pub(super) fn bus(&self) -> Bus {
        let host = |server: &async_nats::ServerAddr| match server.host() {
            ip if ip.contains(':') => format!("[{ip}]:{}", server.port()),
            host => format!("{host}:{}", server.port()),
        };
        let mut notes = Vec::new();
        if self.tls.is_some() || self.servers.iter().any(async_nats::ServerAddr::tls_required) {
            notes.push("Connections use TLS.".to_owned());
        }
        notes.push(match (&self.delivery, &self.stream) {
            (NatsDelivery::Core, _) => {
                "Core NATS, at most once: a subscriber that is not connected misses messages.".to_owned()
            }
            (NatsDelivery::Jetstream, None) => "JetStream: streams store the messages.".to_owned(),
            (NatsDelivery::Jetstream, Some(stream)) => {
                format!("JetStream: the stream `{}` stores the messages.", stream.name)
            }
        });
        Bus {
            hosts: self.servers.iter().map(host).collect(),
            protocol: "nats",
            notes,
            other_headers: &[(
                super::MESSAGE_ID,
                "Lets a stream drop a repeat within its duplicate window. It is derived from source, id and subject.",
            )],
            // The binding of NATS says nothing about channels and messages, and a message has no key. Its queue group is
            // chosen by subscribers.
            message_bindings: |_| None,
            channel_bindings: None,
            operation_bindings: Some(json!({ "nats": { "bindingVersion": "0.1.0" } })),
        }
    }

    pub(super) fn present(&self) -> Present {
        Present { login: self.login.present(), files: self.files.fingerprints() }
    }

    /// Whether the stream is to be created where it is missing.
    pub(super) fn creates_stream(&self) -> bool {
        self.stream.as_ref().is_some_and(|stream| stream.create)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::common::validation::FieldError;

    fn errors(text: &str) -> String {
        let config: NatsConfig = toml::from_str(text).expect("the form is right");
        let mut validation = Validation::of("");
        let context = OutputContext { name: "nats", deadline: Duration::from_secs(1) };
        assert!(config.validate(context, &mut validation).is_none());
        validation.errors().iter().map(FieldError::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn errors_do_not_show_secrets() {
        let found = errors(
            "servers = ['nats://user:hunter2@ho st']\nuser = 'me'\ntoken = 'hunter2'\ndelivery = 'core'\n\
             inbox_prefix = 'a.>'\nstream = { name = 'A B', create = true }\ntls = { ca_file = '/nonexistent/ca.pem' }",
        );
        for expected in [
            "servers: invalid address `…@ho st`: expected nats://host:port",
            "user: needs `password` too",
            "inbox_prefix: invalid subject `a.>`",
            "tls.ca_file: /nonexistent/ca.pem cannot be read",
            "stream: core NATS has no streams",
            "stream.name: invalid name `A B`",
            "stream.subjects: needed to create the stream",
        ] {
            assert!(found.contains(expected), "{expected} not in:\n{found}");
        }
        assert!(!found.contains("hunter2"), "{found}");
    }

    #[test]
    fn settings_of_a_stream_are_checked() {
        let found = errors(
            "[stream]\nname = 'S'\nsubjects = ['a..b', 'c']\nreplicas = 7\nduplicate_window = '2h'\nmax_age = '1h'\n\
             max_bytes = '0B'",
        );
        let expected = [
            "stream.subjects: invalid subject `a..b`: expected tokens between dots, as in media.>",
            "stream.replicas: 7 is out of range: expected 1 to 5",
            "stream.duplicate_window: 2h is longer than stream.max_age, 1h: a message that is gone is not compared",
            "stream.max_bytes: 0B is out of range: expected more than 0B, for example \"10GiB\"",
        ];
        assert_eq!(found, expected.join("\n"));
        assert_eq!(
            errors("[stream]\nname = 'S'\nduplicate_window = '1ms'"),
            "stream.duplicate_window: 1ms is too short: expected at least 100ms"
        );
    }

    #[test]
    fn warnings_name_one_replica_and_subjects_that_the_stream_does_not_take() {
        let warnings = |text: &str, topics: &[&str]| {
            let config: NatsConfig = toml::from_str(text).expect("valid");
            let topics: Vec<String> = topics.iter().map(|topic| (*topic).to_owned()).collect();
            config.warnings("nats", &topics)
        };
        let stream = "[stream]\nname = 'S'\nsubjects = ['media.*', 'vod.>']\ncreate = true\n";
        let topics = ["media.{status}", "vod.a.b", "media.x", "vod.{status}.z"];
        assert_eq!(warnings(&format!("{stream}replicas = 1"), &topics), Vec::<String>::new());
        let found = warnings(stream, &["media.x.y", "ims.{status}", "media"]);
        assert!(found[0].contains("with one replica, because stream.replicas is not set"), "{found:?}");
        let outside: Vec<&str> = found[1..].iter().filter_map(|warning| warning.split('`').nth(3)).collect();
        assert_eq!(outside, ["ims.{status}", "media", "media.x.y"]);
    }
}
