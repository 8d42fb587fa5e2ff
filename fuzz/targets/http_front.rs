//! Any bytes on a connection to a running HTTP input, split in pieces, followed by the end of the stream.
//!
//! The byte 0xFF is followed by a letter that says what to put in its place: `C` the end of a piece, `V` the headers
//! of a valid signature as VOD sends them, `I` as IMS does, `W` those of a wrong signature, `B` a callback with its
//! content-length and the end of the head. All other bytes are sent as they are.
//!
//! What must hold: nothing panics. The bridge closes the connection. There are no more answers with 200 than valid
//! signatures.

#![no_main]

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use apsara_bridge::config::{self, Layer};
use apsara_bridge::dialect::Dialect;
use apsara_bridge::input::http::signature::signed_headers;
use apsara_bridge::service::Service;
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};

const URL: &str = "https://media.example.com/callbacks";
const KEY: &str = "FuzzKey123";

const CONFIG: &str = r#"
    admin.listen = "127.0.0.1:0"
    spool.enabled = false
    outputs.console.kind = "console"
    routes = [{ name = "all", drop = true }]
    [inputs.http]
    kind = "http"
    listen = "127.0.0.1:0"
    max_body = "1KiB"
    endpoints = [{ path = "/callbacks", urls = ["https://media.example.com/callbacks"], keys = ["FuzzKey123"] }]
"#;

const CALLBACK: &str = r#"{"EventType":"FileUploadComplete","EventTime":"2026-01-01T00:00:00Z","VideoId":"v"}"#;

/// A connection that has ended takes milliseconds. All time-outs of the input are longer.
const LIMIT: Duration = Duration::from_secs(4);

struct Front {
    runtime: Runtime,
    address: SocketAddr,
}

impl Front {
    fn start() -> Front {
        // Each task that yields lets the others see what has arrived.
        let runtime = Builder::new_current_thread().enable_all().event_interval(1).build().expect("a runtime");
        let loaded = config::load(&[Layer::Text("fuzz".to_owned(), CONFIG.to_owned())]).expect("valid");
        let address = runtime.block_on(async {
            let service = Service::start(loaded.settings).await.expect("it starts");
            let address = service.input_address("http").expect("an input");
            tokio::spawn(service.run(std::future::pending(), std::future::pending()));
            address
        });
        Front { runtime, address }
    }
}

thread_local! {
    static FRONT: Front = Front::start();
}

/// The pieces to send, and how many valid signatures they have.
fn pieces(bytes: &[u8]) -> (Vec<Vec<u8>>, usize) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let headers = |dialect, key| {
        let headers = signed_headers(dialect, URL, i64::try_from(now).expect("a time"), key);
        headers.map(|(name, value)| format!("{name}: {value}\r\n")).concat()
    };
    let (mut pieces, mut signatures) = (vec![Vec::new()], 0);
    let mut rest = bytes.iter();
    while let Some(byte) = rest.next() {
        let insert = match (byte, rest.as_slice().first()) {
            (0xFF, Some(b'C')) => {
                pieces.push(Vec::new());
                String::new()
            }
            (0xFF, Some(b'V')) => headers(Dialect::Vod, KEY),
            (0xFF, Some(b'I')) => headers(Dialect::Ims, KEY),
            (0xFF, Some(b'W')) => headers(Dialect::Vod, "OtherKey123"),
            (0xFF, Some(b'B')) => format!("content-length: {}\r\n\r\n{CALLBACK}", CALLBACK.len()),
            _ => {
                pieces.last_mut().expect("at least one").push(*byte);
                continue;
            }
        };
        if matches!(rest.next(), Some(b'V' | b'I')) {
            signatures += 1;
        }
        pieces.last_mut().expect("at least one").extend_from_slice(insert.as_bytes());
    }
    (pieces, signatures)
}

async fn answers(address: SocketAddr, pieces: &[Vec<u8>]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.expect("the bridge listens");
    stream.set_nodelay(true).expect("a socket");
    let mut answers = Vec::new();
    for piece in pieces {
        // The bridge may have closed the connection already. What it answered can still be read.
        let _ = stream.write_all(piece).await;
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
    }
    let _ = stream.shutdown().await;
    let _ = stream.read_to_end(&mut answers).await;
    answers
}

fuzz_target!(|bytes: &[u8]| {
    let (pieces, signatures) = pieces(bytes);
    let answers = FRONT.with(|front| {
        let answers = async { tokio::time::timeout(LIMIT, answers(front.address, &pieces)).await };
        front.runtime.block_on(answers).expect("the connection ends")
    });
    let text = String::from_utf8_lossy(&answers);
    assert!(text.is_empty() || text.starts_with("HTTP/1."), "{text}");
    // No line in a body ends like this.
    let accepted = text.matches("HTTP/1.1 200 OK\r\n").count() + text.matches("HTTP/1.0 200 OK\r\n").count();
    assert!(accepted <= signatures, "{accepted} were accepted with {signatures} signatures: {text}");
});
