//! A real nats-server with JetStream and its own port, and its data in a folder that is removed with it: alone, or as
//! part of a [`cluster`].
//!
//! Promises: started means that the server has sent its greeting to a connection and JetStream is on. [`Nats::restart`]
//! keeps the port and the data. Reading ([`Nats::messages`]) creates no consumer, so it leaves no trace in the stream,
//! and never returns fewer messages than requested without an error.
//!
//! A server has one listener, so the client of this support code uses the same credentials and certificates as the
//! client under test: [`Nats::connect_options`].

pub mod cluster;

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::{Config as StreamConfig, Stream};
use async_nats::{Client, ConnectOptions};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use nkeys::KeyPair;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::certificates::Certificates;
use super::process::Process;
use super::wait::{RETRY, START};
use super::{blocking, eventually, free_port, installed};

/// The user of [`Auth::UserPassword`].
pub const USER: &str = "bridge";
/// Its password.
pub const PASSWORD: &str = "correct horse=battery";
/// The token of [`Auth::Token`].
pub const TOKEN: &str = "token-of-the-tests";

/// How a client logs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Auth {
    /// Without credentials.
    #[default]
    None,
    /// [`USER`] and [`PASSWORD`].
    UserPassword,
    /// [`TOKEN`].
    Token,
    /// [`Nats::nkey_seed`].
    Nkey,
    /// A JWT and a seed in one file, [`Nats::credentials_file`]; the server runs in operator mode.
    Credentials,
}

/// Whether connections are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tls {
    /// No.
    #[default]
    Off,
    /// Yes, the server shows a certificate.
    Server,
    /// Yes, both sides show certificates.
    Mutual,
}

/// What to start.
#[derive(Debug, Clone)]
pub struct NatsOptions {
    /// How clients log in.
    pub auth: Auth,
    /// Whether connections are encrypted.
    pub tls: Tls,
    /// The largest message; `None` is the server's own default of 1 MiB.
    pub max_payload: Option<u32>,
    /// Whether JetStream is on. Default: true.
    pub jetstream: bool,
    /// Further lines of the server's configuration.
    pub config: String,
}

impl Default for NatsOptions {
    fn default() -> Self {
        Self { auth: Auth::None, tls: Tls::Off, max_payload: None, jetstream: true, config: String::new() }
    }
}

/// One message, as it is stored in a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its sequence in the stream.
    pub sequence: u64,
    /// The subject.
    pub subject: String,
    /// The headers as they were sent: in order, with the case of their names, repeated ones included.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub payload: Vec<u8>,
}

impl Stored {
    /// The value of the first header of exactly that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }
}

/// A server. Dropping it kills it and removes its data.
#[derive(Debug)]
pub struct Nats {
    options: NatsOptions,
    url: String,
    nkey_seed: String,
    certificates: Option<Certificates>,
    process: Mutex<Process>, // before the folder: the server must be dead before its data is removed
    folder: TempDir,
}

impl Nats {
    /// The server of this test process: default options, started by the first caller. Tests use different streams and
    /// subjects, and leave it running.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceLock<Nats> = OnceLock::new();
        blocking(|| SHARED.get_or_init(|| Self::start_blocking(NatsOptions::default()))).await
    }

    /// Starts a server for the caller alone.
    pub async fn start(options: NatsOptions) -> Self {
        blocking(|| Self::start_blocking(options)).await
    }

    /// [`start`](Self::start) for code that is not async.
    pub fn start_blocking(options: NatsOptions) -> Self {
        let folder =
            tempfile::Builder::new().prefix("nats-").tempdir().expect("the folder for temporary files is writable");
        let certificates = (options.tls != Tls::Off).then(|| Certificates::make(&folder.path().join("tls")));
        let port = free_port();
        let user = KeyPair::new_user();
        let config = config(&options, certificates.as_ref(), folder.path(), port, &user);
        std::fs::write(folder.path().join("nats.conf"), config).expect("the temporary folder is writable");
        let process = run(folder.path(), port);
        Self {
            url: format!("{}://127.0.0.1:{port}", if certificates.is_some() { "tls" } else { "nats" }),
            nkey_seed: user.seed().expect("a new key has a seed"),
            certificates,
            process: Mutex::new(process),
            options,
            folder,
        }
    }

    /// `nats://host:port`, or `tls://host:port`; without credentials.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The TLS files, if connections are encrypted.
    pub fn certificates(&self) -> Option<&Certificates> {
        self.certificates.as_ref()
    }

    /// The seed for [`Auth::Nkey`].
    pub fn nkey_seed(&self) -> &str {
        &self.nkey_seed
    }

    /// The file for [`Auth::Credentials`].
    pub fn credentials_file(&self) -> PathBuf {
        credentials_file(self.folder.path())
    }

    /// The options to connect to [`url`](Self::url).
    pub fn connect_options(&self) -> ConnectOptions {
        let options = ConnectOptions::new();
        let mut options = match self.options.auth {
            Auth::None => options,
            Auth::UserPassword => options.user_and_password(USER.to_owned(), PASSWORD.to_owned()),
            Auth::Token => options.token(TOKEN.to_owned()),
            Auth::Nkey => options.nkey(self.nkey_seed.clone()),
            Auth::Credentials => {
                let text = std::fs::read_to_string(self.credentials_file()).expect("written at the start");
                options.credentials(&text).expect("a valid file")
            }
        };
        if let Some(certificates) = &self.certificates {
            options = options.require_tls(true).add_root_certificates(certificates.authority.clone());
            if self.options.tls == Tls::Mutual {
                options = options.add_client_certificate(certificates.client.clone(), certificates.client_key.clone());
            }
        }
        options
    }

    /// A new client. It belongs to the runtime of the caller.
    pub async fn client(&self) -> Client {
        let connected = self.connect_options().connect(self.url.as_str()).await;
        connected.unwrap_or_else(|error| panic!("no connection to {}: {error}", self.url))
    }

    /// JetStream through a new client.
    pub async fn jetstream(&self) -> jetstream::Context {
        jetstream::new(self.client().await)
    }

    /// Creates a stream of these subjects, stored in files and otherwise with the server's defaults.
    pub async fn create_stream(&self, name: &str, subjects: &[&str]) -> Stream {
        self.create_stream_with(name, subjects, |_| {}).await
    }

    /// The same; `change` sets what is not the default.
    pub async fn create_stream_with(
        &self,
        name: &str,
        subjects: &[&str],
        change: impl FnOnce(&mut StreamConfig),
    ) -> Stream {
        create_stream(&self.jetstream().await, name, subjects, change).await
    }

    /// All messages of `stream`, in order, once there are at least `at_least`.
    ///
    /// # Panics
    /// `timeout` passes first, or there is no such stream.
    pub async fn messages(&self, stream: &str, at_least: usize, timeout: Duration) -> Vec<Stored> {
        let client = self.client().await;
        let mut info = jetstream::new(client.clone())
            .get_stream(stream)
            .await
            .unwrap_or_else(|error| panic!("stream {stream} can't be read: {error}"));
        let state = eventually(&format!("{at_least} messages in stream {stream}"), timeout, async || {
            // A server that is briefly unavailable is asked again, until the limit.
            let state = &info.info().await.ok()?.state;
            (state.messages >= at_least as u64).then(|| state.clone())
        })
        .await;
        let mut messages = Vec::new();
        if state.messages == 0 {
            return messages;
        }
        for sequence in state.first_sequence..=state.last_sequence {
            messages.extend(stored(&client, stream, sequence).await);
        }
        messages
    }

    /// Freezes the server with SIGSTOP: connections stay open, nothing answers.
    pub fn stop(&self) {
        self.process().stop();
    }

    /// Lets a frozen server continue.
    pub fn cont(&self) {
        self.process().cont();
    }

    /// Stops the server with SIGTERM, as an operator does.
    ///
    /// # Panics
    /// It does not end.
    pub fn shut_down(&self) {
        let process = self.process();
        process.signal("TERM");
        assert!(process.wait(START).is_some(), "nats-server does not end after SIGTERM:\n{}", process.log_tail());
    }

    /// Kills the server with SIGKILL: connections break, and its port refuses new ones.
    pub fn kill(&self) {
        self.process().kill();
    }

    /// Kills the server if it still runs and starts it again, with the same port and data.
    pub async fn restart(&self) {
        self.kill();
        let folder = self.folder.path().to_owned();
        let port = self.port();
        let process = blocking(move || run(&folder, port)).await;
        *self.process() = process;
    }

    /// Restarts the server of [`Auth::Token`] with another token. The client of this support code cannot log in any
    /// more.
    pub async fn restart_with_token(&self, token: &str) {
        let file = self.folder.path().join("nats.conf");
        let config = std::fs::read_to_string(&file).expect("written at the start");
        std::fs::write(&file, config.replace(TOKEN, token)).expect("the temporary folder is writable");
        self.restart().await;
    }

    /// Changes the server's configuration while it runs.
    pub fn reload(&self, from: &str, to: &str) {
        let file = self.folder.path().join("nats.conf");
        let config = std::fs::read_to_string(&file).expect("written at the start");
        assert!(config.contains(from), "{from} is not in {config}");
        std::fs::write(&file, config.replace(from, to)).expect("the temporary folder is writable");
        self.process().signal("HUP");
    }

    /// The server's log file.
    pub fn log_file(&self) -> PathBuf {
        self.process().log_file().to_owned()
    }

    /// The server's process id.
    pub fn id(&self) -> u32 {
        self.process().id()
    }

    fn port(&self) -> u16 {
        self.url.rsplit(':').next().and_then(|port| port.parse().ok()).expect("the url was created here")
    }

    fn process(&self) -> MutexGuard<'_, Process> {
        self.process.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

async fn create_stream(
    jetstream: &jetstream::Context,
    name: &str,
    subjects: &[&str],
    change: impl FnOnce(&mut StreamConfig),
) -> Stream {
    let mut config = StreamConfig {
        name: name.to_owned(),
        subjects: subjects.iter().map(|&subject| subject.to_owned()).collect(),
        ..StreamConfig::default()
    };
    change(&mut config);
    let made = jetstream.create_stream(config).await;
    made.unwrap_or_else(|error| panic!("stream {name} can't be created: {error}"))
}

/// The message with that sequence, or `None` if it was deleted.
///
/// Uses the API directly, because async-nats keeps only the last of several headers with the same name, and a judge
/// must see all of them.
async fn stored(client: &Client, stream: &str, sequence: u64) -> Option<Stored> {
    const NOT_FOUND: u64 = 404;
    let question = json!({ "seq": sequence }).to_string();
    let reply = client.request(format!("$JS.API.STREAM.MSG.GET.{stream}"), question.into()).await;
    let reply = reply.unwrap_or_else(|error| panic!("message {sequence} of {stream} can't be read: {error}"));
    let answer: Value = serde_json::from_slice(&reply.payload).expect("JetStream answers in JSON");
    if answer["error"]["code"] == NOT_FOUND {
        return None;
    }
    let message = &answer["message"];
    let Some(subject) = message["subject"].as_str() else {
        panic!("message {sequence} of {stream} can't be read: {answer}")
    };
    let bytes =
        |field: &str| STANDARD.decode(message[field].as_str().unwrap_or_default()).expect("the server writes base64");
    let headers = String::from_utf8(bytes("hdrs")).expect("headers that async-nats can write");
    let headers = headers.lines().skip(1).filter_map(|line| line.split_once(':')); // the first line is the version
    Some(Stored {
        sequence,
        subject: subject.to_owned(),
        headers: headers.map(|(name, value)| (name.to_owned(), value.trim_ascii().to_owned())).collect(),
        payload: bytes("data"),
    })
}

/// The server's configuration file. It is also valid JSON, so values are quoted as in JSON.
fn config(
    options: &NatsOptions,
    certificates: Option<&Certificates>,
    folder: &Path,
    port: u16,
    user: &KeyPair,
) -> String {
    let mut config = json!({ "host": "127.0.0.1", "port": port });
    if options.jetstream {
        // The server would use three quarters of the machine's memory by default.
        config["jetstream"] = json!({
            "store_dir": folder.join("data"),
            "max_memory_store": 256 << 20,
            "max_file_store": 4_u64 << 30,
        });
    }
    if let Some(bytes) = options.max_payload {
        config["max_payload"] = json!(bytes);
    }
    if let Some(certificates) = certificates {
        config["tls"] = json!({
            "cert_file": certificates.server,
            "key_file": certificates.server_key,
            "ca_file": certificates.authority,
            "verify": options.tls == Tls::Mutual,
        });
    }
    match options.auth {
        Auth::None => {}
        Auth::UserPassword => config["authorization"] = json!({ "user": USER, "password": PASSWORD }),
        Auth::Token => config["authorization"] = json!({ "token": TOKEN }),
        Auth::Nkey => config["authorization"] = json!({ "users": [{ "nkey": user.public_key() }] }),
        Auth::Credentials => operator_mode(&mut config, folder, user),
    }
    // Without the outer braces, lines in the server's own syntax can follow.
    let text = serde_json::to_string_pretty(&config).expect("a JSON value");
    let text = text.trim_start_matches('{').trim_end_matches('}');
    format!("{text}\n{}\n", options.config)
}

/// Writes the credentials file of a user, and adds an operator, its system account (JetStream requires one) and the
/// account of the user to the configuration.
fn operator_mode(config: &mut Value, folder: &Path, user: &KeyPair) {
    let (operator, system, account) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_account());
    let unlimited = |keys: &[&str]| Value::Object(keys.iter().map(|&key| (key.to_owned(), json!(-1))).collect());
    let connections = ["subs", "data", "payload", "imports", "exports", "conn", "leaf"];
    let with_storage = [&connections[..], &["mem_storage", "disk_storage", "streams", "consumer"]].concat();
    let account_claims = |limits: &[&str]| json!({ "type": "account", "version": 2, "limits": unlimited(limits) });
    config["operator"] = json!(jwt(&operator, &operator, json!({ "type": "operator", "version": 2 })));
    config["system_account"] = json!(system.public_key());
    config["resolver"] = json!("MEMORY");
    // The system account may not have storage.
    config["resolver_preload"] = json!({
        system.public_key(): jwt(&operator, &system, account_claims(&connections)),
        account.public_key(): jwt(&operator, &account, account_claims(&with_storage)),
    });
    let mut user_claims = unlimited(&["subs", "data", "payload"]);
    user_claims["type"] = json!("user");
    user_claims["version"] = json!(2);
    let jwt = jwt(&account, user, user_claims);
    let seed = user.seed().expect("a new key has a seed");
    let text = format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    );
    std::fs::write(credentials_file(folder), text).expect("the temporary folder is writable");
}

/// A token about `subject`, signed by `issuer`, in the form that nats-server reads.
fn jwt(issuer: &KeyPair, subject: &KeyPair, claims: Value) -> String {
    let claims = json!({
        "jti": subject.public_key(),
        "iat": 1_700_000_000,
        "iss": issuer.public_key(),
        "sub": subject.public_key(),
        "name": "tests",
        "nats": claims,
    });
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(json!({ "typ": "JWT", "alg": "ed25519-nkey" })), part(claims));
    let signature = issuer.sign(signed.as_bytes()).expect("a new key can sign");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn credentials_file(folder: &Path) -> PathBuf {
    folder.join("user.creds")
}

/// Starts the server on its folder, and returns when it sends its greeting.
fn run(folder: &Path, port: u16) -> Process {
    let mut command = Command::new(installed("bin/nats-server", "nats"));
    command.arg("--config").arg(folder.join("nats.conf"));
    let process = Process::start("nats-server", &command, &folder.join("nats.log"), Some(folder));
    process.wait_ready(START, || {
        // The greeting is sent in plaintext, before TLS.
        let connection = TcpStream::connect(("127.0.0.1", port)).ok()?;
        connection.set_read_timeout(Some(RETRY)).ok()?;
        let mut greeting = String::new();
        BufReader::new(connection).read_line(&mut greeting).ok()?;
        greeting.starts_with("INFO ").then_some(())
    });
    process
}
