//! nats-servers that form a cluster, with JetStream and a copy of each stream on each of them.
//!
//! Promises: started means that JetStream has elected its leader and every server follows it. A call that changes a
//! server returns when the change is done. The client of this support code uses only servers that should answer. A
//! cluster of one is a single server.
//!
//! Clients connect without credentials. A user of the system account, which only this support code uses, requests
//! elections of JetStream's own leader.

use std::net::SocketAddr;
use std::sync::Mutex;

use async_nats::jetstream;
use async_nats::jetstream::stream::{Config, DiscardPolicy, Stream};
use async_nats::{Client, ConnectOptions};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{Nats, NatsOptions, create_stream};
use crate::support::wait::{CHANGE, RETRY, SETTLED};
use crate::support::{bridge, eventually, free_port};

/// The user of the system account.
const OPERATOR: (&str, &str) = ("operator", "of-the-tests");

/// The servers.
#[derive(Debug)]
pub struct NatsCluster {
    servers: Vec<Nats>,
    /// The monitoring ports of the servers.
    monitors: Vec<u16>,
    /// Whether each server should answer.
    answers: Mutex<Vec<bool>>,
}

impl NatsCluster {
    /// Starts this many servers.
    pub async fn start(size: usize) -> NatsCluster {
        let (monitors, routes): (Vec<u16>, Vec<u16>) = (0..size).map(|_| (free_port(), free_port())).unzip();
        let servers = (0..size).map(|place| {
            let config = configuration(place, monitors[place], &routes);
            Nats::start(NatsOptions { config, ..NatsOptions::default() })
        });
        let servers = futures_util::future::join_all(servers).await;
        let cluster = NatsCluster { answers: Mutex::new(vec![true; servers.len()]), servers, monitors };
        cluster.complete().await;
        cluster
    }

    /// The servers.
    pub fn servers(&self) -> &[Nats] {
        &self.servers
    }

    /// The URLs of all servers.
    pub fn urls(&self) -> Vec<String> {
        self.servers.iter().map(|server| server.url().to_owned()).collect()
    }

    /// The ports of all servers.
    pub fn ports(&self) -> Vec<u16> {
        self.servers.iter().map(Nats::port).collect()
    }

    /// A new client of a server that should answer.
    pub async fn client(&self) -> Client {
        self.connect(ConnectOptions::new()).await
    }

    /// JetStream through a new client.
    pub async fn jetstream(&self) -> jetstream::Context {
        let mut jetstream = jetstream::new(self.client().await);
        jetstream.set_timeout(CHANGE);
        jetstream
    }

    /// Creates a stream with a copy on each server, stored in files; `change` sets what is not the default.
    pub async fn create_stream(&self, name: &str, subjects: &[&str], change: impl FnOnce(&mut Config)) -> Stream {
        create_stream(&self.jetstream().await, name, subjects, |config| {
            config.num_replicas = self.servers.len();
            change(config);
        })
        .await
    }

    /// The index in [`servers`](Self::servers) of the leader of a stream, if there is one.
    pub async fn leader(&self, stream: &str) -> Option<usize> {
        let info = self.stream_info(stream).await?;
        self.place(info["cluster"]["leader"].as_str()?)
    }

    /// The index of the leader of JetStream according to most servers, if there is one.
    pub async fn meta_leader(&self) -> Option<usize> {
        let mut seen = Vec::new();
        for place in self.answering() {
            let jetstream = self.monitor(place, "/jsz").await?;
            seen.push(self.place(jetstream["meta_cluster"]["leader"].as_str()?)?);
        }
        seen.iter().copied().find(|leader| seen.iter().filter(|other| *other == leader).count() * 2 > seen.len())
    }

    /// The indexes of the servers to which a client with this prefix of its name is connected.
    pub async fn servers_of(&self, client: &str) -> Vec<usize> {
        let mut places = Vec::new();
        for place in self.answering() {
            let Some(connections) = self.monitor(place, "/connz").await else { continue };
            let connections = connections["connections"].as_array().cloned().unwrap_or_default();
            let is_there =
                connections.iter().any(|each| each["name"].as_str().is_some_and(|name| name.starts_with(client)));
            places.extend(is_there.then_some(place));
        }
        places
    }

    /// Asks the leader of a stream to step down. True if one did.
    pub async fn step_down(&self, stream: &str) -> bool {
        let subject = format!("$JS.API.STREAM.LEADER.STEPDOWN.{stream}");
        is_done(&ask(&self.client().await, subject, "").await)
    }

    /// Asks the leader of JetStream to step down. True if one did.
    pub async fn step_down_meta(&self) -> bool {
        let options = ConnectOptions::with_user_and_password(OPERATOR.0.to_owned(), OPERATOR.1.to_owned());
        let client = self.connect(options).await;
        is_done(&ask(&client, "$JS.API.META.LEADER.STEPDOWN".to_owned(), "").await)
    }

    /// Limits a stream to its current size, so it refuses new messages; or gives it room. Nothing if the cluster does
    /// not do it at the moment.
    pub async fn set_full(&self, stream: &str, is_full: bool) -> Option<()> {
        let jetstream = self.jetstream().await;
        let mut handle = jetstream.get_stream(stream).await.ok()?;
        let info = handle.info().await.ok()?;
        let mut config = info.config.clone();
        config.discard = DiscardPolicy::New;
        config.max_bytes = if is_full { i64::try_from(info.state.bytes.max(1)).ok()? } else { -1 };
        jetstream.update_stream(config).await.ok().map(drop)
    }

    /// Kills a server with SIGKILL.
    pub async fn kill(&self, place: usize) {
        self.set_answers(place, false);
        tokio::task::block_in_place(|| self.servers[place].kill());
    }

    /// Stops a server with SIGTERM, and returns when it has ended.
    pub async fn shut_down(&self, place: usize) {
        self.set_answers(place, false);
        tokio::task::block_in_place(|| self.servers[place].shut_down());
    }

    /// Starts a server that is not running.
    pub async fn start_again(&self, place: usize) {
        self.servers[place].restart().await;
        self.set_answers(place, true);
    }

    /// Freezes a server: connections stay open, nothing answers.
    pub async fn freeze(&self, place: usize) {
        self.set_answers(place, false);
        tokio::task::block_in_place(|| self.servers[place].stop());
    }

    /// Lets a frozen server continue.
    pub async fn thaw(&self, place: usize) {
        self.servers[place].cont();
        self.set_answers(place, true);
    }

    /// Waits until JetStream has a leader that all servers follow.
    pub async fn complete(&self) {
        let size = self.servers.len();
        eventually("JetStream to have a leader and all its servers", SETTLED, async || {
            if size == 1 {
                return Some(());
            }
            let leader = self.meta_leader().await?;
            let state = self.monitor(leader, "/jsz").await?;
            let followers = state["meta_cluster"]["replicas"].as_array()?;
            (followers.len() == size - 1 && followers.iter().all(is_current)).then_some(())
        })
        .await;
    }

    /// Waits until a stream has a leader, and copies that have caught up on all servers.
    pub async fn in_sync(&self, stream: &str) {
        let size = self.servers.len();
        eventually(&format!("all copies of stream {stream} to have caught up"), SETTLED, async || {
            if size == 1 {
                return self.stream_info(stream).await.map(drop);
            }
            self.leader(stream).await?;
            let info = self.stream_info(stream).await?;
            let copies = info["cluster"]["replicas"].as_array()?;
            (copies.len() == size - 1 && copies.iter().all(is_current)).then_some(())
        })
        .await;
    }

    /// The information of JetStream about a stream, if it answers.
    pub async fn stream_info(&self, stream: &str) -> Option<Value> {
        let info = ask(&self.client().await, format!("$JS.API.STREAM.INFO.{stream}"), "").await?;
        info["error"].is_null().then_some(info)
    }

    /// The answer of a server's monitoring, if it answers.
    async fn monitor(&self, place: usize, path: &str) -> Option<Value> {
        let address = SocketAddr::from(([127, 0, 0, 1], self.monitors[place]));
        let get = async {
            let stream = tokio::net::TcpStream::connect(address).await.ok()?;
            Some(bridge::Client::over(stream).await.request("GET", path, "", &[]).await)
        };
        serde_json::from_slice(&timeout(RETRY, get).await.ok()??.body).ok()
    }

    async fn connect(&self, options: ConnectOptions) -> Client {
        let urls: Vec<String> =
            self.answering().into_iter().map(|place| self.servers[place].url().to_owned()).collect();
        eventually("a connection to NATS", SETTLED, async || {
            let options = options.clone().connection_timeout(RETRY).request_timeout(Some(RETRY));
            options.connect(urls.as_slice()).await.ok()
        })
        .await
    }

    fn place(&self, name: &str) -> Option<usize> {
        (0..self.servers.len()).find(|&place| server_name(place) == name)
    }

    fn answering(&self) -> Vec<usize> {
        let answers = self.answers.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        (0..self.servers.len()).filter(|&place| answers[place]).collect()
    }

    fn set_answers(&self, place: usize, value: bool) {
        self.answers.lock().unwrap_or_else(|poisoned| poisoned.into_inner())[place] = value;
    }
}

fn server_name(place: usize) -> String {
    format!("server-{}", place + 1)
}

/// The part of a server's configuration that makes it a member of the cluster.
fn configuration(place: usize, monitor: u16, routes: &[u16]) -> String {
    let (user, password) = OPERATOR;
    let mut config = json!({
        "server_name": server_name(place),
        "http": format!("127.0.0.1:{monitor}"),
        "accounts": {
            "EVENTS": { "jetstream": "enabled", "users": [{ "user": "events", "password": "events" }] },
            "SYSTEM": { "users": [{ "user": user, "password": password }] },
        },
        "system_account": "SYSTEM",
        "no_auth_user": "events",
    });
    if routes.len() > 1 {
        let url = |port: &u16| format!("nats://127.0.0.1:{port}");
        config["cluster"] = json!({
            "name": "tests",
            "listen": format!("127.0.0.1:{}", routes[place]),
            "routes": routes.iter().map(url).collect::<Vec<_>>(),
            // Otherwise clients behind a proxy would learn addresses that bypass it.
            "no_advertise": true,
        });
    }
    // Without the outer braces it can follow other settings.
    let text = config.to_string();
    text[1..text.len() - 1].to_owned()
}

/// Whether a copy is online and has caught up.
fn is_current(copy: &Value) -> bool {
    copy["current"] == true && copy["offline"] != true
}

async fn ask(client: &Client, subject: String, question: &'static str) -> Option<Value> {
    let reply = timeout(RETRY, client.request(subject, question.into())).await.ok()?.ok()?;
    serde_json::from_slice(&reply.payload).ok()
}

fn is_done(answer: &Option<Value>) -> bool {
    answer.as_ref().is_some_and(|answer| answer["success"] == true)
}
