//! An HTTP/1.1 server whose bounds hold against a stranger. The HTTP input and the admin listener use it.
//!
//! Promises:
//!
//! - At most [`Bounds::max_connections`] are open. When all of them are taken, a new connection gets the place of the one
//!   that has been idle longest: first among those whose last request was not accepted, or whose peer does not read; then
//!   among those that wait for their next request; then among those whose request is still arriving. Only when every
//!   connection is waiting for the outcome of a complete request, the new one is answered and closed.
//! - At most [`Bounds::max_per_address`] are open for one address. An IPv6 address counts with the rest of its /64,
//!   because one host usually has all of it.
//! - A head, and a TLS handshake, must be complete within [`Bounds::header_timeout`] of its first byte; on a new
//!   connection, of the start. Between two requests, a connection may be idle longer, because proxies keep their
//!   connections open and must not find them closed. An answer must be read within [`ANSWER_TIMEOUT`]. One task compares
//!   all connections with these times, so that a time limit costs a request nothing.
//! - An answer after which the connection is closed reaches its reader, also if the rest of the request is still coming.
//! - An answer without an end ([`Connection::stream`]) ends when its peer closes its side. One that is not read does not
//!   delay the end of the server.
//!
//! # Layout
//!
//! - `connection`: one connection to its end
//! - `endless`: answers without an end
//! - `examine`: what `doctor` checks about an address
//! - `slots`: the connections that are open, what they are doing, and who has to go
//! - `stream`: notices what comes and what is not read

mod connection;
mod endless;
mod examine;
mod slots;
mod stream;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::HOST;
use hyper::{HeaderMap, Request, Response, Version};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use examine::examine;
pub use slots::Connection;
use slots::Slots;

/// How long a connection may be idle between requests. Common proxies close theirs after 60 s; this is longer, so the
/// proxy closes first.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

/// How long a peer may take to read what is written for it. Answers are small; the longest are the metrics.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest head of a request, in bytes: five times what Alibaba and a few proxies send.
const MAX_HEAD: usize = 16 << 10;

/// Largest buffer of a connection, in bytes.
const MAX_BUFFER: usize = MAX_HEAD;

/// Bytes of memory that a connection takes at most, while a head or a small body arrives.
pub const CONNECTION_MEMORY: u64 = 48 << 10;

/// The same with TLS.
pub const TLS_CONNECTION_MEMORY: u64 = 96 << 10;

/// Bytes that the system keeps for a peer that does not read. Without this it would be megabytes.
const SEND_BUFFER: u32 = 64 << 10;

/// Milliseconds after which the system gives up a peer that acknowledges nothing. Without this it would be a quarter of an
/// hour, and a peer that has vanished would keep its place for so long.
#[cfg(target_os = "linux")]
const VANISHED_AFTER: u32 = 30_000;

/// Connections that the system keeps until they are accepted. It may have a lower limit of its own.
const BACKLOG: u32 = 4096;

/// Pause after the system refused to accept a connection, for example because it has no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often a refusal of the system is logged.
const ACCEPT_LOG: Duration = Duration::from_secs(60);

/// How long writing the last answers may take after all requests have ended.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Bounds of a server.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections at the same time, at least 1.
    pub max_connections: usize,
    /// Connections of one address at the same time.
    pub max_per_address: Option<usize>,
    /// The longest time for a head, and for a TLS handshake.
    pub header_timeout: Duration,
    /// File descriptors of the process that its connections leave to others. See [`super::descriptors`].
    pub spared_descriptors: usize,
}

/// Why the server has ended or refused a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// All connections are taken, and none can be closed for it.
    NoRoom,
    /// All connections of its address are taken.
    NoRoomForAddress,
    /// It had been idle longest when another one needed its place.
    Evicted,
    /// The head of a request, or a TLS handshake, took too long.
    HeadLate,
    /// A TLS handshake failed.
    HandshakeFailed,
    /// What came is not HTTP, or its head is too large.
    Unreadable,
    /// Its peer did not read the answers.
    AnswerNotRead,
}

impl Loss {
    /// Every loss.
    pub const ALL: [Loss; 7] = [
        Loss::NoRoom,
        Loss::NoRoomForAddress,
        Loss::Evicted,
        Loss::HeadLate,
        Loss::HandshakeFailed,
        Loss::Unreadable,
        Loss::AnswerNotRead,
    ];

    /// The word in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Loss::NoRoom => "no_room",
            Loss::NoRoomForAddress => "no_room_for_address",
            Loss::Evicted => "evicted",
            Loss::HeadLate => "head_late",
            Loss::HandshakeFailed => "handshake_failed",
            Loss::Unreadable => "unreadable",
            Loss::AnswerNotRead => "answer_not_read",
        }
    }
}

/// Answers the requests of a server.
pub trait Serve: Send + Sync + 'static {
    /// The name of the listener, for logs.
    fn name(&self) -> &str;

    /// Answers a request. Dropped when the connection ends.
    fn answer(
        &self,
        request: Request<Incoming>,
        connection: &Connection,
    ) -> impl Future<Output = Response<Full<Bytes>>> + Send;

    /// Whether an answer shows that the request came from somebody who is expected here. Such connections are closed for
    /// others last.
    fn is_accepted(&self, answer: &Response<Full<Bytes>>) -> bool;

    /// Counts a connection that is lost. Returns the answer for a peer that can still be given one, as bytes: after
    /// [`Loss::NoRoom`], [`Loss::NoRoomForAddress`] and [`Loss::HeadLate`].
    fn lost(&self, loss: Loss) -> String;

    /// Takes note of the number of open connections, about once a second.
    fn count(&self, connections: usize);
}

/// Binds one of the addresses: the first that can be bound.
///
/// # Errors
/// Why the last one cannot be bound.
pub fn bind(addresses: &[SocketAddr]) -> io::Result<TcpListener> {
    let mut refused = io::Error::new(io::ErrorKind::InvalidInput, "no address");
    for address in addresses {
        let bound = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.and_then(|socket| {
            // A restart must not wait for the old connections' last packets.
            socket.set_reuseaddr(true)?;
            // Its connections inherit this.
            socket.set_send_buffer_size(SEND_BUFFER)?;
            socket.bind(*address)?;
            socket.listen(BACKLOG)
        });
        match bound {
            Ok(listener) => return Ok(listener),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

/// Serves until `closed`. After `stopping`, connections are closed as soon as they are idle. `acceptor` gives the TLS of a
/// new connection.
pub async fn serve<S: Serve>(
    listener: TcpListener,
    acceptor: impl Fn() -> Option<TlsAcceptor>,
    service: Arc<S>,
    bounds: Bounds,
    stopping: CancellationToken,
    closed: CancellationToken,
) {
    let slots = Arc::new(Slots::new(bounds));
    let connections = TaskTracker::new();
    let mut sweep = tokio::time::interval(slots.sweep_interval());
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_stopping = false;
    let mut logged: Option<Instant> = None;
    loop {
        let (stream, peer) = tokio::select! {
            () = closed.cancelled() => break,
            () = stopping.cancelled(), if !is_stopping => {
                is_stopping = true;
                slots.finish(true);
                continue;
            }
            _ = sweep.tick() => {
                slots.sweep();
                service.count(slots.len());
                continue;
            }
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    if logged.is_none_or(|last| last.elapsed() >= ACCEPT_LOG) {
                        logged = Some(Instant::now());
                        tracing::warn!(listener = service.name(), %error, "cannot accept connections");
                    }
                    // The usual reason is a lack of file descriptors, which this gives back.
                    slots.evict();
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        match slots.enter(peer.ip()) {
            Ok(seat) => {
                let _ = stream.set_nodelay(true);
                #[cfg(target_os = "linux")]
                let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, VANISHED_AFTER);
                connections.spawn(connection::serve(seat, stream, acceptor(), service.clone()));
            }
            Err(loss) => refuse(&stream, &service.lost(loss)),
        }
    }
    drop(listener);
    slots.finish(false);
    connections.close();
    let _ = tokio::time::timeout(LAST_ANSWERS, connections.wait()).await;
}

/// The send buffer of a new connection has room for an answer. It does not matter if the client has gone.
fn refuse(stream: &TcpStream, answer: &str) {
    let _ = stream.try_write(answer.as_bytes());
}

/// Whether a request has the `Host` that RFC 9112 (section 3.2) demands: exactly one in HTTP/1.1, at most one in HTTP/1.0.
pub fn has_valid_host(headers: &HeaderMap, version: Version) -> bool {
    let hosts = headers.get_all(HOST).iter().count();
    hosts == 1 || hosts == 0 && version == Version::HTTP_10
}
