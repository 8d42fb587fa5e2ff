//! Connections: accepts them, limits their number and their time, keeps them alive between requests, closes them
//! gracefully.
//!
//! The head of a request may take `header_timeout` from its first byte. A connection between two requests may be idle
//! longer, because proxies keep their connections open and must not find them closed. hyper has one timer for both. It
//! is used as the idle timer; the timer for the head is implemented here.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::problem::Problem;
use super::request::Service;
use super::tls::Tls;

/// How long a connection may be idle between requests. Common proxies close theirs after 60 s; this is longer, so the
/// proxy closes first.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

/// Pause after the system refused to accept a connection, for example because it has no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Largest head of a request: ten times what Alibaba and a few proxies send.
const MAX_HEAD: usize = 32 << 10;

/// How long writing the last answers may take after all callbacks have ended.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Bounds of the connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) max_connections: usize,
    pub(super) header_timeout: Duration,
}

/// Accepts connections until everything ends.
pub(super) async fn serve(listener: TcpListener, tls: Option<Arc<Tls>>, service: Arc<Service>, limits: Limits) {
    let closed = service.handle.closed().clone();
    let room = Arc::new(Semaphore::new(limits.max_connections));
    let connections = TaskTracker::new();
    loop {
        let (stream, _) = tokio::select! {
            () = closed.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(input = service.name(), %error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let Ok(permit) = room.clone().try_acquire_owned() else {
            service.count_not_accepted(Problem::TooManyRequests);
            let detail = "connection limit reached";
            // The send buffer of a new connection has room for this. It does not matter if the client has gone.
            let _ = stream.try_write(Problem::TooManyRequests.raw_response(detail).as_bytes());
            continue;
        };
        let _ = stream.set_nodelay(true);
        let service = service.clone();
        let acceptor = tls.as_ref().map(|tls| tls.acceptor());
        connections.spawn(async move {
            let _permit = permit;
            match acceptor {
                None => serve_connection(stream, service, limits).await,
                Some(acceptor) => match tokio::time::timeout(limits.header_timeout, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => serve_connection(stream, service, limits).await,
                    Ok(Err(error)) => tracing::debug!(input = service.name(), %error, "TLS handshake failed"),
                    Err(_) => service.count_not_accepted(Problem::RequestTimeout),
                },
            }
        });
    }
    drop(listener);
    connections.close();
    let _ = tokio::time::timeout(LAST_ANSWERS, connections.wait()).await;
}

/// Serves one connection to its end.
async fn serve_connection<S>(stream: S, service: Arc<Service>, limits: Limits)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (stopping, closed) = (service.handle.not_accepting().clone(), service.handle.closed().clone());
    let clock = Arc::new(HeadClock::new());
    let stream = Watched { stream, clock: clock.clone() };
    let answer = service_fn(|request| {
        let (service, clock) = (service.clone(), clock.clone());
        async move {
            clock.head_is_read();
            let answer = service.answer(request).await;
            clock.is_idle();
            Ok::<_, std::convert::Infallible>(answer)
        }
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), answer);
    let mut is_stopping = false;
    let mut is_closing = false;
    loop {
        tokio::select! {
            result = &mut connection => {
                if let Err(error) = result {
                    tracing::debug!(input = service.name(), %error, "connection ended");
                    if error.is_parse() || error.is_parse_too_large() {
                        service.count_not_accepted(Problem::BodyUnreadable);
                    }
                }
                return;
            }
            () = stopping.cancelled(), if !is_stopping => {
                is_stopping = true;
                // hyper closes an idle new connection before it reads the first request; let that request be answered.
                if clock.has_served.load(Ordering::Relaxed) {
                    Pin::new(&mut connection).graceful_shutdown();
                }
            }
            () = closed.cancelled(), if !is_closing => {
                is_closing = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
            () = clock.is_late(limits.header_timeout) => {
                let parts = connection.into_parts();
                // Without a single byte there is no request to answer.
                if !parts.read_buf.is_empty() {
                    service.count_not_accepted(Problem::RequestTimeout);
                    let limit = humantime::format_duration(limits.header_timeout);
                    let detail = format!("the head of the request took longer than {limit}");
                    let mut stream = parts.io.into_inner();
                    let answer = Problem::RequestTimeout.raw_response(&detail);
                    let _ = tokio::time::timeout(limits.header_timeout, stream.write_all(answer.as_bytes())).await;
                    let _ = tokio::time::timeout(limits.header_timeout, stream.shutdown()).await;
                }
                return;
            }
        }
    }
}

/// When the head that is being read now began to arrive.
#[derive(Debug)]
struct HeadClock {
    start: Instant,
    /// Milliseconds from the start plus one, or one of the two states.
    since: AtomicU64,
    /// Whether this connection has carried a request.
    has_served: AtomicBool,
}

/// Between requests.
const IDLE: u64 = 0;

/// A request is being answered.
const BUSY: u64 = u64::MAX;

impl HeadClock {
    /// The time of a new connection counts from its start: the client is expected to send at once.
    fn new() -> HeadClock {
        HeadClock { start: Instant::now(), since: AtomicU64::new(1), has_served: AtomicBool::new(false) }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(BUSY - 2) + 1
    }

    fn bytes_came(&self) {
        if self.since.load(Ordering::Relaxed) == IDLE {
            self.since.store(self.now(), Ordering::Relaxed);
        }
    }

    fn head_is_read(&self) {
        self.has_served.store(true, Ordering::Relaxed);
        self.since.store(BUSY, Ordering::Relaxed);
    }

    fn is_idle(&self) {
        self.since.store(IDLE, Ordering::Relaxed);
    }

    /// Ends when a head has been arriving for longer than the limit.
    async fn is_late(&self, limit: Duration) {
        let limit = u64::try_from(limit.as_millis()).unwrap_or(BUSY);
        loop {
            let waited = match self.since.load(Ordering::Relaxed) {
                IDLE | BUSY => 0,
                since => self.now() - since,
            };
            if waited >= limit {
                return;
            }
            // A head that begins during the sleep has time left when this wakes.
            tokio::time::sleep(Duration::from_millis(limit - waited)).await;
        }
    }
}

/// A stream that reports arriving bytes to the clock.
struct Watched<S> {
    stream: S,
    clock: Arc<HeadClock>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.clock.bytes_came();
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
