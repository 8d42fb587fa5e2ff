//! The HTTP side of the server: connections, the log, faults, and the checks of every request.
//!
//! Promises: a request is logged when it has arrived completely, and again when it ends. A [`Fault`] applies before the
//! request is checked. Nothing is leased for a client that disconnected while it waited. A connection is kept open,
//! except after a batch delete that failed in part, like with the real service.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use md5::{Digest, Md5};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;

use super::operations::{Call, Refused, Reply, carry_out};
use super::signature::{Signable, hex, http_date, verify};
use super::xml::{document, leaf};
use super::{Answer, Command, Fault, Request, Shared, message_of, status_of};

/// More than a batch of the largest messages in which each character is escaped.
const MAX_BODY: usize = 16 * 65_536 * 6;

/// Listens on `address` while the last command says so, until the sender of commands is dropped.
pub(super) async fn run(shared: Arc<Shared>, address: SocketAddr, mut commands: UnboundedReceiver<Command>) {
    let mut listener = None;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            command = commands.recv() => {
                let done = match command {
                    None => return,
                    Some(Command::Up(done)) => {
                        if listener.is_none() {
                            let bound = TcpListener::bind(address).await;
                            listener = Some(bound.unwrap_or_else(|error| panic!("{address} was free: {error}")));
                        }
                        done
                    }
                    Some(Command::Down(done)) => {
                        listener = None;
                        connections.shutdown().await;
                        done
                    }
                };
                // The sender may have been dropped in a test's panic.
                let _ = done.send(());
            }
            stream = accept(listener.as_ref()) => {
                shared.connections.fetch_add(1, Ordering::Relaxed);
                connections.spawn(serve(shared.clone(), stream));
            }
            Some(ended) = connections.join_next() => match ended {
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                _ => {}
            },
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> TcpStream {
    match listener {
        Some(listener) => listener.accept().await.expect("a connection can be accepted").0,
        None => std::future::pending().await,
    }
}

/// One connection.
async fn serve(shared: Arc<Shared>, stream: TcpStream) {
    // A failure means that the client has disconnected.
    let _ = stream.set_nodelay(true);
    let reset = AtomicBool::new(false);
    let service = service_fn(|request| {
        let shared = shared.clone();
        let reset = &reset;
        async move { answer(&shared, request).await.inspect_err(|_| reset.store(true, Ordering::Relaxed)).map(respond) }
    });
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // It also ends with an error when a client disconnects, which is allowed.
    let _ = (&mut connection).await;
    if reset.load(Ordering::Relaxed) {
        let _ = connection.into_parts().io.into_inner().set_zero_linger();
    }
}

/// The connection is reset instead of an answer.
#[derive(Debug)]
struct Reset;

impl std::fmt::Display for Reset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("reset on demand")
    }
}

impl std::error::Error for Reset {}

fn respond(reply: Reply) -> Response<Full<Bytes>> {
    let mut response = Response::builder()
        .status(StatusCode::from_u16(reply.status).expect("a fault has a status that exists"))
        .header("date", reply.date)
        .header("x-mns-request-id", reply.request_id)
        .header("x-mns-version", "2015-06-06");
    if !reply.body.is_empty() {
        response = response.header("content-type", if reply.is_text { "text/html" } else { "text/xml;charset=utf-8" });
    }
    if let Some(location) = reply.location {
        response = response.header("location", location);
    }
    if reply.closes {
        response = response.header("connection", "close");
    }
    response.body(Full::new(reply.body.into())).expect("headers of printable characters")
}

/// Reads a request, logs it, applies a fault if there is one, and carries it out.
async fn answer(shared: &Shared, request: hyper::Request<Incoming>) -> Result<Reply, Reset> {
    let (head, body) = request.into_parts();
    let text = |value: &hyper::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let signable = Signable {
        method: head.method.to_string(),
        target: head.uri.path_and_query().map_or("/", |target| target.as_str()).to_owned(),
        headers: head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
    };
    let body = Limited::new(body, MAX_BODY).collect().await.map_err(|_| Reset)?.to_bytes();
    let call = Call::new(&signable, &body);
    let started = Instant::now();
    let (entry, fault) = {
        let mut state = shared.lock();
        let entry = state.log(Request {
            operation: call.operation,
            queue: call.queue.clone(),
            target: signable.target.clone(),
            signed: None,
            answer: None,
        });
        (entry, state.fault(call.operation))
    };
    let end = |status, code, messages| {
        let answer = Answer { after: started.elapsed(), status, code, messages };
        if let Some(request) = shared.lock().logged(entry) {
            request.answer = Some(answer);
        }
    };
    let (mut is_lost, mut delay) = (false, None);
    let struck = match fault {
        None => None,
        Some(Fault::Error { status, code }) => Some(error(shared, entry, status, &code)),
        Some(Fault::Text { status, body }) => Some(Reply { is_text: true, ..Reply::new(status, body) }),
        Some(Fault::Reset) => {
            end(0, None, 0);
            return Err(Reset);
        }
        Some(Fault::LoseAnswer) => {
            is_lost = true;
            None
        }
        Some(Fault::Delay(time)) => {
            delay = Some(time);
            None
        }
    };
    let mut reply = match struck {
        Some(reply) => reply,
        None => {
            let carried_out = match authorize(shared, &signable, &body, entry) {
                Ok(()) => carry_out(shared, &signable, &call).await,
                Err(code) => Err(code),
            };
            carried_out.unwrap_or_else(|code| error(shared, entry, status_of(code).unwrap_or(500), code))
        }
    };
    if let Some(time) = delay {
        // The fault is the delay.
        tokio::time::sleep(time).await;
    }
    if is_lost {
        end(0, reply.code, reply.messages);
        return Err(Reset);
    }
    end(reply.status, reply.code.clone(), reply.messages);
    reply.request_id = request_id(entry);
    reply.date = http_date(shared.lock().time());
    Ok(reply)
}

fn request_id(entry: usize) -> String {
    format!("{:024X}", entry + 1)
}

/// An error document.
fn error(shared: &Shared, entry: usize, status: u16, code: &str) -> Reply {
    let region = shared.lock().rules.region.clone();
    let mut content = String::new();
    leaf(&mut content, "Code", code);
    leaf(&mut content, "Message", message_of(code));
    leaf(&mut content, "RequestId", request_id(entry));
    leaf(&mut content, "HostId", format!("http://{}.mns.{region}.aliyuncs.com", shared.account));
    Reply { code: Some(code.to_owned()), ..Reply::new(status, document("Error", &content)) }
}

/// The checks of every request.
fn authorize(shared: &Shared, signable: &Signable, body: &[u8], entry: usize) -> Result<(), Refused> {
    let mut state = shared.lock();
    signable.header("x-mns-version").ok_or("MissingVersionHeader")?;
    let signed = verify(signable, &state.rules, state.time())?;
    if let Some(request) = state.logged(entry) {
        request.signed = Some(signed);
    }
    if let Some(claimed) = signable.header("content-md5") {
        let md5 = Md5::digest(body);
        // The SDKs encode the hex digits, and the service seems to expect that. The header is defined as the bytes.
        if claimed != STANDARD.encode(hex(&md5)) && claimed != STANDARD.encode(md5) {
            return Err("InvalidDegist");
        }
    }
    Ok(())
}
