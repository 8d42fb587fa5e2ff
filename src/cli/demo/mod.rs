//! `demo`: the whole path of a callback.
//!
//! The bus is an embedded Kafka ([`kafka`]), so that nothing has to be installed, or a NATS server of yours ([`nats`]).
//! Everything else is real: the service with its HTTP input and signatures, and the client that reads the events back.

mod kafka;
#[cfg(feature = "nats")]
mod nats;

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::signal::unix::{Signal, SignalKind, signal};

#[cfg(feature = "nats")]
use super::USAGE;
use super::callbacks::{Copies, normalizer};
use super::send::target::Target;
use super::terminal::{fail, table, try_print};
use crate::bridge::Bridge;
use crate::common::http::HttpClient;
use crate::common::secret::{Secret, SecretSource};
use crate::common::visible;
use crate::config::{self, Layer};
use crate::dialect::{Normalizer, Origin, SAMPLES};
use crate::event::{Attribute, DEFAULT_TYPE_PREFIX};
use crate::service::Service;
use crate::telemetry::logs::{self, LogFilter};

/// The URL as it would be entered at Alibaba. It is signed; the request goes to another address.
const URL: &str = "https://media.example.com/callbacks";

/// The key as it would be entered at Alibaba.
const KEY: &str = "DemoKey123";

/// The ends of the topics.
const TOPICS: [&str; 3] = ["vod", "ims", "failed"];

/// The longest time to connect, and to read the events.
const MAX_WAIT: Duration = Duration::from_secs(20);

/// The pause between two callbacks of the trickle.
const TRICKLE: Duration = Duration::from_secs(1);

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Runs until Ctrl-C, so that you can read the topics with any client and look at the
page, whose address it prints. It posts one more sample every second, each with an id
and a time of its own.

With --nats the events go to a stream of this run on your server, APSARA_BRIDGE_DEMO_…,
in memory. It is deleted at the end, also after Ctrl-C and SIGTERM.

Ctrl-C after the table is no failure: the exit code is 0. Before it, it is 130.

Examples:
  apsara-bridge demo
  apsara-bridge demo --nats nats://127.0.0.1:4222
  apsara-bridge demo --once      exit after the table, with 0 if all events arrived
")]
pub(super) struct Demo {
    /// Exit after the table. The exit code is 0 if all events arrived.
    #[arg(long)]
    once: bool,
    /// Publish to this NATS server with JetStream, instead of an embedded Kafka. A login may be in the URL:
    /// user:password@ or token@, percent-encoded.
    #[cfg(feature = "nats")]
    #[arg(long, value_name = "URL")]
    nats: Option<String>,
}

/// Where the events go.
enum Bus {
    Kafka(kafka::Cluster),
    #[cfg(feature = "nats")]
    Nats(nats::Server),
}

impl Bus {
    /// What its topics begin with.
    fn prefix(&self) -> &str {
        match self {
            Bus::Kafka(_) => kafka::PREFIX,
            #[cfg(feature = "nats")]
            Bus::Nats(server) => server.prefix(),
        }
    }

    /// The configuration of the demo, as a user would write it.
    fn configuration(&self) -> String {
        let (prefix, output) = match self {
            Bus::Kafka(cluster) => (self.prefix(), cluster.output()),
            #[cfg(feature = "nats")]
            Bus::Nats(server) => (self.prefix(), server.output()),
        };
        format!(
            r#"
            [inputs.http]
            kind = "http"
            listen = "127.0.0.1:0"
            [[inputs.http.endpoints]]
            path = "/callbacks"
            urls = ["{URL}"]
            keys = ["{KEY}"]

            [[routes]]
            name = "failures"
            match = {{ status = ["failure", "partial"] }}
            to = {{ output = "bus", topic = "{prefix}failed" }}
            continue = true

            [[routes]]
            name = "everything"
            to = {{ output = "bus", topic = "{prefix}{{dialect}}" }}

            [spool]
            enabled = false

            [admin]
            listen = "127.0.0.1:0"

            [outputs.bus]
            {output}
            "#
        )
    }

    /// Creates what the demo needs there.
    async fn prepare(&self) -> Result<(), String> {
        match self {
            Bus::Kafka(_) => Ok(()),
            #[cfg(feature = "nats")]
            Bus::Nats(server) => server.prepare().await,
        }
    }

    /// Removes what the demo leaves.
    async fn clean(&self) -> Result<(), String> {
        match self {
            Bus::Kafka(_) => Ok(()),
            #[cfg(feature = "nats")]
            Bus::Nats(server) => server.clean().await,
        }
    }

    /// The events on all topics, once there are as many as expected, or after a while.
    async fn read_back(&self, expected: usize) -> Result<Vec<Found>, String> {
        match self {
            Bus::Kafka(cluster) => {
                let brokers = cluster.brokers();
                let read = tokio::task::spawn_blocking(move || kafka::read_back(&brokers, expected));
                read.await.map_err(|error| error.to_string())?
            }
            #[cfg(feature = "nats")]
            Bus::Nats(server) => server.read_back(expected).await,
        }
    }

    /// A command that reads the events.
    fn reader(&self) -> String {
        match self {
            Bus::Kafka(cluster) => {
                format!("kcat -b {} -C -t {}failed -e -f '%k  %h\\n%s\\n\\n'", cluster.brokers(), self.prefix())
            }
            #[cfg(feature = "nats")]
            Bus::Nats(server) => server.reader(),
        }
    }
}

impl Demo {
    pub(super) fn run(self) -> ExitCode {
        let log_filter = logs::start(logs::Format::Text, "warn");
        let bus = match self.bus() {
            Ok(bus) => bus,
            Err(code) => return code,
        };
        let runtime = match tokio::runtime::Runtime::new() {
            Ok(runtime) => runtime,
            Err(error) => return fail(format!("the runtime cannot be started: {error}")),
        };
        let ended = runtime.block_on(run(&bus, self.once, &log_filter));
        // After Ctrl-C, nothing waits for a reader.
        runtime.shutdown_background();
        match ended {
            Ok(Ended::Complete | Ended::Unread) => ExitCode::SUCCESS,
            Ok(Ended::Incomplete) => fail("not every callback arrived"),
            Ok(Ended::Stopped(signal)) => {
                eprintln!("apsara-bridge: stopped before all callbacks had arrived");
                ExitCode::from(128 + signal)
            }
            Err(error) => fail(error),
        }
    }

    fn bus(&self) -> Result<Bus, ExitCode> {
        #[cfg(feature = "nats")]
        if let Some(url) = &self.nats {
            return nats::Server::parse(url).map(Bus::Nats).map_err(|error| {
                let _ = fail(error);
                ExitCode::from(USAGE)
            });
        }
        kafka::Cluster::start().map(Bus::Kafka).map_err(fail)
    }
}

/// What a sample should become.
struct Expected {
    name: &'static str,
    id: String,
    r#type: String,
    status: String,
    subject: String,
    is_accepted: bool,
    took: Duration,
}

/// An event that was read back.
struct Found {
    id: String,
    topic: String,
    /// Where in the topic it is.
    place: String,
}

/// How a demo ended.
enum Ended {
    /// Every callback arrived.
    Complete,
    /// Some did not.
    Incomplete,
    /// A signal came before the table.
    Stopped(u8),
    /// The reader of the output is gone, for example `head`.
    Unread,
}

/// Why a demo cannot continue.
enum Halt {
    Error(String),
    Unread,
}

impl From<String> for Halt {
    fn from(error: String) -> Halt {
        Halt::Error(error)
    }
}

/// The signals that end the demo. From now on they do not end the process, which first has to tidy up.
struct Signals([(Signal, u8); 3]);

impl Signals {
    fn new() -> Result<Signals, String> {
        let of = |kind: SignalKind| {
            let signal = signal(kind).map_err(|error| format!("cannot receive signals: {error}"))?;
            Ok::<_, String>((signal, u8::try_from(kind.as_raw_value()).unwrap_or_default()))
        };
        Ok(Signals([of(SignalKind::interrupt())?, of(SignalKind::terminate())?, of(SignalKind::hangup())?]))
    }

    /// The number of the next one.
    async fn next(&mut self) -> u8 {
        let [(interrupt, first), (terminate, second), (hangup, third)] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => *first,
            _ = terminate.recv() => *second,
            _ = hangup.recv() => *third,
        }
    }
}

/// Runs the demo, and leaves nothing on the bus.
async fn run(bus: &Bus, once: bool, log_filter: &LogFilter) -> Result<Ended, String> {
    let mut signals = Signals::new()?;
    let ended = tokio::select! {
        prepared = bus.prepare() => {
            prepared?;
            serve(bus, once, &mut signals, log_filter).await
        }
        signal = signals.next() => Ok(Ended::Stopped(signal)),
    };
    let cleaned = bus.clean().await;
    let ended = ended?;
    cleaned?;
    Ok(ended)
}

/// Runs the bridge until the end of the demo or a signal.
async fn serve(bus: &Bus, once: bool, signals: &mut Signals, log_filter: &LogFilter) -> Result<Ended, String> {
    let layer = Layer::Text("demo".to_owned(), bus.configuration());
    let loaded = config::load(&[layer])
        .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
    let service = Service::start(loaded.settings).await.map_err(|error| error.to_string())?;
    let addresses = (service.input_address("http").ok_or("the demo has no input")?, service.admin_address());
    let bridge = service.bridge().clone();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(service.run(async { drop(stopped.await) }, std::future::pending()));
    let all = Cell::new(None);
    let (shown, signal) = tokio::select! {
        shown = show(bus, &bridge, addresses, once, &all) => (shown, None),
        signal = signals.next() => (Ok(()), Some(signal)),
    };
    // What ends now ends on purpose.
    log_filter.set("off");
    let _ = stop.send(());
    running.await.map_err(|error| error.to_string())?;
    match (shown, all.get(), signal) {
        (Err(Halt::Error(error)), ..) => Err(error),
        (Err(Halt::Unread), ..) => Ok(Ended::Unread),
        (Ok(()), Some(true), _) => Ok(Ended::Complete),
        (Ok(()), None, Some(signal)) => Ok(Ended::Stopped(signal)),
        (Ok(()), ..) => Ok(Ended::Incomplete),
    }
}

/// Writes to standard output.
fn print(text: impl AsRef<[u8]>) -> Result<(), Halt> {
    try_print(text).map_err(|error| match error.kind() {
        std::io::ErrorKind::BrokenPipe => Halt::Unread,
        _ => Halt::Error(format!("standard output cannot be written: {error}")),
    })
}

/// Posts the samples and prints what became of them; then, unless `once`, posts more of them forever. `all` is set with the
/// table: whether every sample has arrived.
async fn show(
    bus: &Bus,
    bridge: &Bridge,
    (input, admin): (SocketAddr, SocketAddr),
    once: bool,
    all: &Cell<Option<bool>>,
) -> Result<(), Halt> {
    let start = Instant::now();
    while !bridge.is_connected() {
        if start.elapsed() > MAX_WAIT {
            return Err(Halt::Error("the bridge does not reach the bus; a line above says why".to_owned()));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let url = format!("http://{input}/callbacks");
    let mut target = Target::parse(&url, HttpClient::new().map_err(|error| error.to_string())?)?;
    let key = Secret::read(&SecretSource::Inline(KEY.to_owned())).map_err(|error| error.to_string())?;
    target.sign(Some(URL.to_owned()), Some(key));
    let normalizer = normalizer()?;
    eprintln!("Posting {} sample callbacks, signed, to {url} …\n", SAMPLES.len());
    let posted = post_samples(&target, &normalizer).await?;
    let expected: usize = posted.iter().map(|sample| 1 + usize::from(goes_to_failed(&sample.status))).sum();
    let found = bus.read_back(expected).await?;
    let prefix = bus.prefix();
    let (text, arrived) = report(&posted, found, prefix);
    print(text)?;
    all.set(Some(arrived == posted.len()));
    let topics = TOPICS.map(|topic| format!("{prefix}{topic}")).join(", ");
    print(format!("\n{arrived} of {} callbacks arrived on {topics}.\n", posted.len()))?;
    if !once {
        print(look_further(&bus.reader(), input, admin))?;
        trickle(&target, &normalizer).await;
    }
    Ok(())
}

fn goes_to_failed(status: &str) -> bool {
    matches!(status, "failure" | "partial")
}

/// Posts the samples as Alibaba does, one after the other.
async fn post_samples(target: &Target, normalizer: &Normalizer) -> Result<Vec<Expected>, String> {
    let mut posted = Vec::new();
    for (name, body) in SAMPLES {
        let origin = Origin::at(OffsetDateTime::now_utc());
        let event = normalizer.normalize(body, &origin).map_err(|error| format!("{name}: {error}"))?.event;
        let start = Instant::now();
        let answer = target.post(body, 1, |_, _| {}).await;
        let took = start.elapsed();
        if !answer.is_success {
            eprintln!("{name}: {}", visible::text(&answer.words));
        }
        let attribute = |attribute| event.get(attribute).unwrap_or("-").to_owned();
        posted.push(Expected {
            name,
            id: event.id().to_owned(),
            r#type: attribute(Attribute::Type).trim_start_matches(DEFAULT_TYPE_PREFIX).to_owned(),
            status: attribute(Attribute::Status),
            subject: attribute(Attribute::Subject),
            is_accepted: answer.is_success,
            took,
        });
    }
    Ok(posted)
}

/// Posts copies of the samples, one after the other, forever.
async fn trickle(target: &Target, normalizer: &Normalizer) {
    let now = OffsetDateTime::now_utc();
    let copies: Vec<Copies> = SAMPLES.iter().filter_map(|(_, body)| Copies::of(body, normalizer, now)).collect();
    for (number, copies) in (0..).zip(copies.iter().cycle()) {
        tokio::time::sleep(TRICKLE).await;
        let answer = target.post(&copies.copy(number, OffsetDateTime::now_utc()), 1, |_, _| {}).await;
        if !answer.is_success {
            eprintln!("{}", visible::text(&answer.words));
        }
    }
}

/// The table of the events, and how many callbacks arrived at all of their topics.
fn report(posted: &[Expected], found: Vec<Found>, prefix: &str) -> (String, usize) {
    let mut by_id: HashMap<String, Vec<Found>> = HashMap::new();
    for event in found {
        by_id.entry(event.id.clone()).or_default().push(event);
    }
    let header = ["callback", "type", "status", "subject", "topic", "place", "answered in"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    let mut arrived = 0;
    for sample in posted {
        let mut topics = vec![if sample.name.starts_with("vod") { "vod" } else { "ims" }];
        if goes_to_failed(&sample.status) {
            topics.push("failed");
        }
        let mut complete = sample.is_accepted;
        let events = by_id.entry(sample.id.clone()).or_default();
        for (line, topic) in topics.iter().map(|topic| format!("{prefix}{topic}")).enumerate() {
            let event = events.iter().position(|event| event.topic == topic).map(|index| events.remove(index));
            complete &= event.is_some();
            let mut row = match line {
                0 => vec![sample.name.to_owned(), sample.r#type.clone(), sample.status.clone(), sample.subject.clone()],
                _ => vec![String::new(); 4],
            };
            row.extend([topic, event.map_or_else(|| "MISSING".to_owned(), |event| event.place)]);
            if line == 0 {
                row.push(format!("{:.1} ms", sample.took.as_secs_f64() * 1000.0));
            }
            rows.push(row);
        }
        arrived += usize::from(complete);
    }
    (table(&rows), arrived)
}

fn look_further(reader: &str, input: SocketAddr, admin: SocketAddr) -> String {
    let mut text = String::from("\nOne more sample is posted every second. While this runs, you can look further:\n\n");
    let _ = write!(
        text,
        "  http://{admin}/   (the page, for a browser)\n\n  \
         {reader}\n\n  \
         CALLBACK_KEY={KEY} apsara-bridge send http://{input}/callbacks --url {URL} --key-env CALLBACK_KEY\n\n  \
         t=$(date +%s); curl -i http://{input}/callbacks -H \"X-VOD-TIMESTAMP: $t\" \\\n    \
         -H \"X-VOD-SIGNATURE: $(printf %s \"{URL}|$t|{KEY}\" | md5sum | cut -c1-32)\" \\\n    \
         -d '{{\"EventType\":\"FileUploadComplete\",\"EventTime\":\"2026-01-01T00:00:00Z\",\"VideoId\":\"my-video\",\"Size\":\"42\"}}'\n\n  \
         apsara-bridge tail --admin {admin}\n\n  \
         curl http://{admin}/metrics\n\nCtrl-C stops it.\n"
    );
    text
}
