//! Settings of a NATS output: what the configuration says, checked, with its secrets.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::event::Mode;
use crate::route::Template;
use crate::setting::{Mistake, Secret, SecretSource, Size, Span, one_or_many};

/// The most replicas that a stream can have.
const MAX_REPLICAS: usize = 5;

/// The shortest times that a server accepts for a stream.
const SHORTEST_TIME: Duration = Duration::from_millis(100);

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

/// Where a stream keeps its messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StreamStorage {
    /// In files.
    #[default]
    File,
    /// In memory: a restart of the servers loses them.
    Memory,
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
    /// Whether to create it when it is missing.
    #[serde(default)]
    pub create: bool,
    /// Number of servers that hold each message, 1 to 5. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<usize>,
    /// Where it keeps its messages.
    #[serde(default)]
    pub storage: StreamStorage,
    /// How long it knows a repeat by its `Nats-Msg-Id`. Default: the server's, 2 minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplicate_window: Option<Span>,
    /// How long it keeps a message. Default: forever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Span>,
    /// How many bytes it holds before it takes no more. Default: no limit of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<Size>,
}

impl StreamConfig {
    /// Checks the settings by themselves.
    fn check(&self, wrong: &mut dyn FnMut(&str, String)) {
        if self.name.is_empty()
            || self.name.contains(['.', '*', '>', '/', '\\'])
            || self.name.contains(char::is_whitespace)
        {
            wrong("stream.name", format!("invalid name `{}`: expected one without blanks and . * > / \\", self.name));
        }
        if self.create && self.subjects.is_empty() {
            wrong("stream.subjects", "needed to create the stream, for example [\"media.>\"]".to_owned());
        }
        for subject in self.subjects.iter().filter(|subject| !is_pattern(subject)) {
            wrong(
                "stream.subjects",
                format!("invalid subject `{subject}`: expected tokens between dots, as in media.>"),
            );
        }
        if let Some(replicas) = self.replicas.filter(|replicas| !(1..=MAX_REPLICAS).contains(replicas)) {
            wrong("stream.replicas", format!("{replicas} is out of range: expected 1 to {MAX_REPLICAS}"));
        }
        for (key, time) in [("stream.duplicate_window", self.duplicate_window), ("stream.max_age", self.max_age)] {
            if let Some(time) = time.filter(|time| time.0 < SHORTEST_TIME) {
                wrong(key, format!("{time} is too short: expected at least 100ms"));
            }
        }
        if let (Some(window), Some(age)) = (self.duplicate_window, self.max_age)
            && window > age
        {
            let message =
                format!("{window} is longer than stream.max_age, {age}: a message that is gone is not compared");
            wrong("stream.duplicate_window", message);
        }
        if let Some(bytes) = self.max_bytes.filter(|bytes| bytes.0 == 0 || i64::try_from(bytes.0).is_err()) {
            wrong("stream.max_bytes", format!("{bytes} is out of range: expected more than 0B, for example \"10GiB\""));
        }
    }

    /// What is valid but looks like a mistake.
    fn warning(&self, output: &str) -> Option<String> {
        (self.create && self.replicas.is_none()).then(|| {
            format!(
                "output `{output}` creates stream `{}` with one replica, because stream.replicas is not set: losing that \
                 server loses its events; set 3 for a cluster, or 1 to confirm",
                self.name
            )
        })
    }

    /// Whether the stream may take messages of a destination; true where attributes decide.
    fn may_take(&self, topic: &Template) -> bool {
        // A value of an attribute can be more than one token, so that nothing is known from the first one on.
        let text = topic.to_string();
        let (literal, is_whole) = match text.split_once('{') {
            Some((literal, _)) => (literal.rsplit_once('.').map_or("", |(tokens, _)| tokens), false),
            None => (text.as_str(), true),
        };
        self.subjects.iter().any(|pattern| {
            if is_whole {
                return covers(pattern, literal);
            }
            let mut wanted = pattern.split('.');
            let mut tokens = literal.split('.').filter(|token| !token.is_empty());
            loop {
                match (wanted.next(), tokens.next()) {
                    (Some(">"), _) | (Some(_), None) => return true,
                    (Some(wanted), Some(token)) if wanted == "*" || wanted == token => {}
                    _ => return false,
                }
            }
        })
    }
}

/// Whether a subject with or without wildcards is well formed.
fn is_pattern(subject: &str) -> bool {
    let count = subject.split('.').count();
    subject.split('.').enumerate().all(|(index, token)| match token {
        ">" => index + 1 == count,
        "*" => true,
        token => !token.is_empty() && !token.contains(['*', '>']) && token.chars().all(|c| c.is_ascii_graphic()),
    })
}

/// Whether every subject that `inner` stands for is one that `outer` stands for.
pub(super) fn covers(outer: &str, inner: &str) -> bool {
    let (mut outer, mut inner) = (outer.split('.'), inner.split('.'));
    loop {
        match (outer.next(), inner.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(wanted), Some(token)) if wanted == token => {}
            _ => return false,
        }
    }
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

impl TlsConfig {
    fn check(&self, wrong: &mut dyn FnMut(&str, String)) {
        for (key, file) in
            [("tls.ca_file", &self.ca_file), ("tls.cert_file", &self.cert_file), ("tls.key_file", &self.key_file)]
        {
            if let Some(file) = file
                && let Err(error) = std::fs::File::open(file)
            {
                wrong(key, format!("{} can't be read: {error}", file.display()));
            }
        }
        if self.cert_file.is_some() != self.key_file.is_some() {
            wrong("tls", "`cert_file` and `key_file` go together".to_owned());
        }
    }
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
    /// Begin of the subjects that answers come to.
    pub inbox_prefix: String,
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
            inbox_prefix: "_INBOX".to_owned(),
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
        let servers = self.servers(&mut wrong);
        let login = self.login(&mut wrong);
        if !is_pattern(&self.inbox_prefix) || self.inbox_prefix.contains(['*', '>']) {
            let message = format!("invalid subject `{}`: expected one without wildcards", self.inbox_prefix);
            wrong("inbox_prefix", message);
        }
        if let Some(tls) = &self.tls {
            tls.check(&mut wrong);
        }
        if let Some(stream) = &self.stream {
            if self.delivery == NatsDelivery::Core {
                wrong("stream", "core NATS has no streams; leave it out or set delivery = \"jetstream\"".to_owned());
            }
            stream.check(&mut wrong);
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
            inbox_prefix: self.inbox_prefix.clone(),
            tls: self.tls.clone(),
            stream: self.stream.clone(),
        })
    }

    fn servers(&self, wrong: &mut dyn FnMut(&str, String)) -> Vec<async_nats::ServerAddr> {
        if self.servers.is_empty() {
            wrong("servers", "expected at least one nats://host:port".to_owned());
        }
        let mut servers = Vec::new();
        for server in &self.servers {
            let shown = without_user(server);
            match server.parse::<async_nats::ServerAddr>() {
                Ok(address) if address.has_user_pass() => {
                    let message = "a login in an address would be shown in logs; set `user` and `password` instead";
                    wrong("servers", format!("`{shown}`: {message}"));
                }
                Ok(address) => servers.push(address),
                Err(error) => {
                    wrong("servers", format!("invalid address `{shown}`: expected nats://host:port ({error})"))
                }
            }
        }
        servers
    }

    fn login(&self, wrong: &mut dyn FnMut(&str, String)) -> Login {
        let mut ways = Vec::new();
        let mut login = Login::None;
        let read = |key: &str, source: &SecretSource, wrong: &mut dyn FnMut(&str, String)| {
            Secret::read(source).map_err(|error| wrong(key, error)).ok()
        };
        match (&self.user, &self.password) {
            (Some(user), Some(password)) => {
                ways.push("user");
                let password = read("password", password, wrong);
                login = password.map_or(Login::None, |password| Login::User(user.clone(), password));
            }
            (None, None) => {}
            (Some(_), None) => wrong("user", "needs `password` too".to_owned()),
            (None, Some(_)) => wrong("password", "needs `user` too".to_owned()),
        }
        if let Some(token) = &self.token {
            ways.push("token");
            login = read("token", token, wrong).map_or(Login::None, Login::Token);
        }
        if let Some(nkey) = &self.nkey {
            ways.push("nkey");
            login = read("nkey", nkey, wrong).map_or(Login::None, Login::NKey);
        }
        if let Some(file) = &self.credentials_file {
            ways.push("credentials_file");
            let file = SecretSource::File(file.clone());
            login = read("credentials_file", &file, wrong).map_or(Login::None, Login::Credentials);
        }
        if ways.len() > 1 {
            wrong(ways[1], format!("expected one way to log in, but {} are set", ways.join(" and ")));
        }
        login
    }

    /// What is valid but looks like a mistake. `destinations` are the subjects that routes and dead letters go to.
    pub fn warnings<'a>(&self, name: &str, destinations: impl Iterator<Item = &'a Template>) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.delivery == NatsDelivery::Core {
            warnings.push(format!(
                "output `{name}` delivers by core NATS, at most once: what was answered with 200 can be lost"
            ));
        }
        let Some(stream) = &self.stream else { return warnings };
        warnings.extend(stream.warning(name));
        if stream.subjects.is_empty() {
            return warnings;
        }
        let mut outside: Vec<String> =
            destinations.filter(|topic| !stream.may_take(topic)).map(Template::to_string).collect();
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
}

fn without_user(address: &str) -> String {
    match address.rsplit_once('@') {
        Some((_, host)) => format!("…@{host}"),
        None => address.to_owned(),
    }
}

#[derive(Debug)]
pub(super) enum Login {
    None,
    User(String, Secret),
    Token(Secret),
    NKey(Secret),
    Credentials(Secret),
}

/// How to log in, with the secrets as they are now.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum PresentLogin {
    None,
    User(String, String),
    Token(String),
    NKey(String),
    Credentials(String),
}

impl Login {
    pub(super) fn present(&self) -> PresentLogin {
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
    pub(super) login: Login,
    pub(super) inbox_prefix: String,
    pub(super) tls: Option<TlsConfig>,
    pub(super) stream: Option<StreamConfig>,
}

impl NatsSettings {
    /// Whether the stream is to be created where it is missing.
    pub(super) fn creates_stream(&self) -> bool {
        self.stream.as_ref().is_some_and(|stream| stream.create)
    }

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
pub(in crate::output) fn check_topic(topic: &Template) -> Result<(), String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(text: &str) -> String {
        let config: NatsConfig = toml::from_str(text).expect("the form is right");
        let errors = config.validate("nats").expect_err("must be refused");
        errors.into_iter().map(|(key, error)| format!("{key}: {error}")).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn mistakes_are_named_without_secrets() {
        let found = mistakes(
            "servers = ['nats://user:hunter2@ho st']\nuser = 'me'\ntoken = 'hunter2'\ndelivery = 'core'\n\
             inbox_prefix = 'a.>'\nstream = { name = 'A B', create = true }\ntls = { ca_file = '/nonexistent/ca.pem' }",
        );
        for expected in [
            "servers: invalid address `…@ho st`: expected nats://host:port",
            "user: needs `password` too",
            "inbox_prefix: invalid subject `a.>`",
            "tls.ca_file: /nonexistent/ca.pem can't be read",
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
        let found = mistakes(
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
            mistakes("[stream]\nname = 'S'\nduplicate_window = '1ms'"),
            "stream.duplicate_window: 1ms is too short: expected at least 100ms"
        );
    }

    #[test]
    fn warnings_name_one_replica_and_subjects_that_the_stream_does_not_take() {
        let warnings = |text: &str, topics: &[&str]| {
            let config: NatsConfig = toml::from_str(text).expect("valid");
            let topics: Vec<Template> =
                topics.iter().map(|topic| Template::parse_topic(topic).expect("valid")).collect();
            config.warnings("nats", topics.iter())
        };
        let stream = "[stream]\nname = 'S'\nsubjects = ['media.*', 'vod.>']\ncreate = true\n";
        let topics = ["media.{status}", "vod.a.b", "media.x", "vod.{status}.z"];
        assert_eq!(warnings(&format!("{stream}replicas = 1"), &topics), Vec::<String>::new());
        let found = warnings(stream, &["media.x.y", "ims.{status}", "media"]);
        assert!(found[0].contains("with one replica, because stream.replicas is not set"), "{found:?}");
        let outside: Vec<&str> = found[1..].iter().filter_map(|warning| warning.split('`').nth(3)).collect();
        assert_eq!(outside, ["ims.{status}", "media", "media.x.y"]);
    }

    #[test]
    fn a_subject_covers_others_by_its_wildcards() {
        for (outer, inner) in [(">", "a.b"), ("a.>", "a.*"), ("a.*", "a.b"), ("a.b", "a.b"), ("a.>", "a.b.>")] {
            assert!(covers(outer, inner), "{outer} {inner}");
        }
        for (outer, inner) in [("a.*", "a.>"), ("a.>", "a"), ("a.b", "a.*"), ("a.*", "a.b.c"), ("a", "b")] {
            assert!(!covers(outer, inner), "{outer} {inner}");
        }
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
