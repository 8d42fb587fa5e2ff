//! A bridge with a NATS server, and a browser that has its page open.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;

use tempfile::TempDir;

use crate::browser::Browser;
use crate::support::blocking;
use crate::support::bridge::{Answer, Client, headers_signed_at, now, signed_headers};
use crate::support::config::{Config, Route};
use crate::support::nats::{Nats, NatsOptions};
use crate::support::program::Program;

/// What the tests need. The fields are dropped in this order.
pub struct Stage {
    pub browser: Browser,
    pub bridge: Arc<Program>,
    pub nats: Arc<Nats>,
    _folder: TempDir,
}

impl Stage {
    /// Starts a bridge that is ready, with payloads on the page.
    pub async fn start() -> Stage {
        Stage::start_with(|config| config).await
    }

    /// The same with another configuration.
    pub async fn start_with(change: impl FnOnce(Config) -> Config) -> Stage {
        let nats = Arc::new(Nats::start(NatsOptions::default()).await);
        let folder = tempfile::tempdir().expect("the folder for temporary files is writable");
        let config = Config::http().nats(nats.url()).stream("MEDIA", "media.>").spool(folder.path().join("spool"));
        let config = config.set("admin.show_payloads = true").routes([
            Route::new("failures").when("status = 'failure'").to("nats", "media.failed").set("continue = true"),
            Route::new("progress").when("type = '*Progress*'").set("drop = true"),
            Route::new("all").to("nats", "media.{dialect}"),
        ]);
        let config = change(config);
        let (bridge, browser) = blocking({
            let folder = folder.path().to_owned();
            move || (Arc::new(Program::start(&folder, config)), Browser::start())
        })
        .await;
        bridge.ready().await;
        Stage { browser, bridge, nats, _folder: folder }
    }

    /// Starts, and opens the page.
    pub async fn open() -> Stage {
        let stage = Stage::start().await;
        stage.browser.open(stage.bridge.admin);
        stage
    }

    /// Posts a body as Alibaba does. Returns the status.
    pub async fn post(&self, body: impl Into<String>) -> u16 {
        self.post_to("/callbacks", body, &signed_headers("VOD")).await.status.as_u16()
    }

    /// Posts a body to a path with headers.
    pub async fn post_to(&self, path: &str, body: impl Into<String>, headers: &[(String, String)]) -> Answer {
        Client::connect(self.bridge.input).await.post(path, body.into(), headers).await
    }

    /// Posts a body that is signed with another key. Returns the status.
    pub async fn post_with_wrong_key(&self, body: impl Into<String>) -> u16 {
        let headers = headers_signed_at("VOD", crate::support::bridge::URL, now(), "AnotherKey");
        self.post_to("/callbacks", body, &headers).await.status.as_u16()
    }

    /// Stops the bridge.
    pub async fn stop_bridge(&self) {
        let bridge = self.bridge.clone();
        blocking(move || bridge.stop()).await;
    }

    /// Starts the bridge again.
    pub async fn start_bridge_again(&self) {
        let bridge = self.bridge.clone();
        blocking(move || bridge.start_again()).await;
    }

    /// An event stream that somebody else has open, as long as the result lives.
    pub fn other_stream(&self) -> TcpStream {
        let mut stream = TcpStream::connect(self.bridge.admin).expect("the bridge listens");
        stream.write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("the bridge reads");
        std::io::Read::read_exact(&mut stream, &mut [0; 12]).expect("the bridge answers");
        stream
    }
}

/// A callback of VOD about a media, with a type and a status.
pub fn callback_of(event_type: &str, status: &str, media: &str) -> String {
    let time = "2026-01-01T00:00:00Z";
    serde_json::json!({ "EventType": event_type, "EventTime": time, "Status": status, "VideoId": media }).to_string()
}
