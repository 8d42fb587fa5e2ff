//! An answer without an end: pieces are written as they come, until the last one, or until the peer has gone.
//!
//! hyper would notice only at the next piece that the peer has closed its side, because elsewhere a peer may do so and
//! still gets its answer. So the connection is taken from it.

use std::fmt::Write as _;
use std::future::ready;

use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use http_body_util::Full;
use hyper::Response;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::slots::{Pieces, Slot};
use super::{Loss, MAX_HEAD};

/// An answer and the pieces of its body.
pub(super) struct Endless {
    pub(super) answer: Response<Full<Bytes>>,
    pub(super) pieces: Pieces,
}

impl Endless {
    /// Writes it until it ends. Returns why the connection is lost, if it is. While the server is finishing, it ends when
    /// the peer does not read.
    pub(super) async fn serve<T>(mut self, slot: &Slot, mut stream: T, mut is_finishing: bool) -> Option<Loss>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        slot.streams();
        let mut unwritten = head(&self.answer);
        let mut unread = 0;
        let mut buffer = [0; 512];
        loop {
            while !unwritten.is_empty() {
                tokio::select! {
                    biased;
                    written = stream.write(&unwritten) => match written {
                        Ok(bytes @ 1..) => {
                            unwritten.advance(bytes);
                            stream.flush().await.ok()?;
                        }
                        _ => return None,
                    },
                    () = ready(()), if is_finishing => return None,
                    order = slot.order_given() => {
                        if order.loss.is_some() {
                            return order.loss;
                        }
                        is_finishing |= order.finish;
                    }
                }
            }
            tokio::select! {
                biased;
                order = slot.order_given() => {
                    if order.loss.is_some() {
                        return order.loss;
                    }
                    is_finishing |= order.finish;
                }
                piece = self.pieces.next() => match piece {
                    Some(piece) => unwritten = piece,
                    None => break,
                },
                read = stream.read(&mut buffer) => match read {
                    // Nothing is expected from the peer. A few bytes do no harm.
                    Ok(bytes @ 1..) if unread + bytes <= MAX_HEAD => unread += bytes,
                    _ => return None,
                },
            }
        }
        let _ = stream.shutdown().await;
        None
    }
}

/// The head of an answer whose body ends with the connection.
fn head(answer: &Response<Full<Bytes>>) -> Bytes {
    let mut head = format!("HTTP/1.1 {}\r\n", answer.status());
    for (name, value) in answer.headers() {
        let _ = write!(head, "{name}: {}\r\n", value.to_str().unwrap_or_default());
    }
    head.push_str("connection: close\r\n\r\n");
    head.into()
}
