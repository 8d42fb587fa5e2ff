//! One connection, from its start to its end.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::endless::Endless;
use super::slots::{Connection, Seat};
use super::stream::Watched;
use super::{Loss, MAX_BUFFER, MAX_HEAD, Serve};

/// How long the rest of a request is read after the connection's last answer. A connection that is closed with bytes
/// unread is reset, and the peer may lose the answer.
const LINGER: Duration = Duration::from_secs(1);

/// Most bytes of it.
const MAX_LINGER: usize = 1 << 20;

/// Serves a connection.
pub(super) async fn serve<S: Serve>(seat: Seat, stream: TcpStream, acceptor: Option<TlsAcceptor>, service: Arc<S>) {
    let local = stream.local_addr().ok().map(|local| local.ip());
    let stream = Watched { stream, slot: seat.slot().clone() };
    let Some(acceptor) = acceptor else { return serve_http(&seat, local, stream, service).await };
    let shaken = tokio::select! {
        shaken = acceptor.accept(stream) => shaken,
        loss = seat.slot().lost() => {
            service.lost(loss);
            return;
        }
    };
    match shaken {
        Ok(stream) => {
            seat.slot().begin();
            serve_http(&seat, local, stream, service).await;
        }
        Err(error) => {
            tracing::debug!(listener = service.name(), %error, "TLS handshake failed");
            service.lost(Loss::HandshakeFailed);
        }
    }
}

async fn serve_http<S, T>(seat: &Seat, local: Option<IpAddr>, stream: T, service: Arc<S>)
where
    S: Serve,
    T: AsyncRead + AsyncWrite + Unpin,
{
    let slot = seat.slot();
    // An answer without an end, for which the connection is taken from hyper.
    let endless: Mutex<Option<Box<Endless>>> = Mutex::default();
    let answer = service_fn(|request| {
        let (service, endless) = (service.clone(), &endless);
        async move {
            slot.head_is_read();
            let mut connection = Connection::new(slot.clone(), local);
            let answer = service.answer(request, &connection).await;
            if let Some(pieces) = connection.take_pieces() {
                *endless.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(Endless { answer, pieces }));
                slot.hand_over();
                return std::future::pending().await;
            }
            connection.answered(service.is_accepted(&answer));
            Ok::<_, Infallible>(answer)
        }
    });
    let mut builder = http1::Builder::new();
    // A peer that has sent everything may close its side: it still gets its answer. The slots have the time limits.
    builder.half_close(true).header_read_timeout(None).max_buf_size(MAX_BUFFER).max_header_size(MAX_HEAD);
    let mut connection = builder.serve_connection(TokioIo::new(stream), answer);
    let rest = loop {
        tokio::select! {
            biased;
            result = &mut connection => {
                if let Err(error) = result {
                    tracing::debug!(listener = service.name(), %error, "connection ended");
                    if error.is_parse() || error.is_parse_too_large() {
                        service.lost(Loss::Unreadable);
                    }
                }
                if slot.was_accepted() {
                    return;
                }
                break connection.into_parts().io.into_inner();
            }
            order = slot.order_given() => {
                let taken = endless.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(endless) = taken.filter(|_| order.loss.is_none()) {
                    let stream = connection.into_parts().io.into_inner();
                    if let Some(loss) = endless.serve(slot, stream, order.finish).await {
                        service.lost(loss);
                    }
                    return;
                }
                if order.finish {
                    pin::Pin::new(&mut connection).graceful_shutdown();
                }
                match order.loss {
                    None => {}
                    Some(Loss::HeadLate) => {
                        let parts = connection.into_parts();
                        // Without a single byte there is no request to answer.
                        if parts.read_buf.is_empty() {
                            return;
                        }
                        let answer = service.lost(Loss::HeadLate);
                        let mut stream = parts.io.into_inner();
                        // A new connection's buffer has room for it. Whoever fills it before does not read.
                        let writing = stream.write_all(answer.as_bytes());
                        let _ = tokio::time::timeout(LINGER, writing).await;
                        break stream;
                    }
                    Some(loss) => {
                        service.lost(loss);
                        return;
                    }
                }
            }
        }
    };
    slot.lingers();
    tokio::select! {
        () = linger(rest) => {}
        _ = slot.lost() => {}
    }
}

/// Closes the writing side, and reads until the peer has closed its own.
async fn linger<T: AsyncRead + AsyncWrite + Unpin>(mut stream: T) {
    let rest = async {
        stream.shutdown().await?;
        let mut buffer = vec![0; 4096];
        let mut read = 0;
        while read < MAX_LINGER {
            match stream.read(&mut buffer).await? {
                0 => break,
                bytes => read += bytes,
            }
        }
        std::io::Result::Ok(())
    };
    // The peer may be gone, and is owed nothing more.
    let _ = tokio::time::timeout(LINGER, rest).await;
}
