//! The events of a run. They are a pure function of seed, length and rate; only their time is from the clock.

use std::fmt;
use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::plan::Random;
use crate::support::read::Bus;
use crate::support::sender::{Callback, Dialect};

/// One of this many events is sent twice at the same time, like by a sender that did not get the answer.
const TWINS: u64 = 50;

/// One of this many events reports a failure, and so goes to another topic.
const FAILURES: u64 = 10;

/// Where the bridge publishes, without the last part, the status.
pub const KAFKA_TOPIC: &str = "chaos";
pub const NATS_SUBJECT: &str = "media.chaos";

/// The last parts.
pub const STATUSES: [&str; 2] = ["success", "failure"];

/// How many servers each bus has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Servers {
    /// One.
    Single,
    /// Three, with a copy of everything on each.
    Cluster,
}

impl Servers {
    pub fn name(self) -> &'static str {
        match self {
            Servers::Single => "single",
            Servers::Cluster => "cluster",
        }
    }

    pub fn count(self) -> usize {
        match self {
            Servers::Single => 1,
            Servers::Cluster => 3,
        }
    }
}

/// How events reach the bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// They are posted.
    Http,
    /// They are put into a queue that the bridge reads.
    Queue,
}

/// The parameters of a run.
#[derive(Clone, Debug)]
pub struct Run {
    pub mode: Mode,
    pub servers: Servers,
    pub seed: u64,
    pub length: Duration,
    /// Events per second.
    pub rate: u32,
}

impl Run {
    /// The run of CHAOS_MODE, CHAOS_BUS, CHAOS_SEED, CHAOS_SECONDS and CHAOS_RATE.
    ///
    /// # Panics
    /// One of them has an invalid value.
    pub fn from_environment() -> Run {
        let number = |name: &str, default: u64| {
            std::env::var(name).map_or(default, |text| {
                text.parse().unwrap_or_else(|_| panic!("{name}={text}: expected a whole number"))
            })
        };
        let mode = match std::env::var("CHAOS_MODE").as_deref() {
            Err(_) | Ok("http") => Mode::Http,
            Ok("queue") => Mode::Queue,
            Ok(other) => panic!("CHAOS_MODE={other}: expected http or queue"),
        };
        let servers = match std::env::var("CHAOS_BUS").as_deref() {
            Err(_) | Ok("single") => Servers::Single,
            Ok("cluster") => Servers::Cluster,
            Ok(other) => panic!("CHAOS_BUS={other}: expected single or cluster"),
        };
        // Nine digits of the clock: enough for a new plan each time, and short enough to type.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_millis();
        let seed = number("CHAOS_SEED", u64::try_from(now % 1_000_000_000).expect("below a billion"));
        let length = Duration::from_secs(number("CHAOS_SECONDS", 3_600));
        let rate = u32::try_from(number("CHAOS_RATE", 300)).expect("CHAOS_RATE fits in 32 bits");
        assert!(rate > 0 && !length.is_zero(), "CHAOS_RATE and CHAOS_SECONDS must be more than 0");
        Run { mode, servers, seed, length, rate }
    }

    /// How many events are sent; they are numbered from 0.
    pub fn total(&self) -> usize {
        usize::try_from(self.length.as_secs() * u64::from(self.rate)).expect("the events fit into memory")
    }

    /// When an event is due, from the start of the run.
    pub fn due(&self, number: usize) -> Duration {
        Duration::from_secs_f64(number as f64 / f64::from(self.rate))
    }

    /// The id of the media that an event is about. No two events have the same.
    pub fn media_id(&self, number: usize) -> String {
        format!("chaos-{}-{number}", self.seed)
    }

    /// The event with this media id, if it is of this run.
    pub fn number(&self, media_id: &str) -> Option<usize> {
        let number = media_id.rsplit('-').next()?.parse().ok()?;
        (number < self.total() && self.media_id(number) == media_id).then_some(number)
    }

    pub fn dialect(number: usize) -> Dialect {
        if number.is_multiple_of(2) { Dialect::Vod } else { Dialect::Ims }
    }

    /// The `status` attribute that an event must get.
    pub fn status(&self, number: usize) -> &'static str {
        let [success, failure] = STATUSES;
        if Random::of_event(self.seed, number).below(FAILURES) == 0 { failure } else { success }
    }

    /// Whether an event is sent twice at the same time.
    pub fn is_twin(&self, number: usize) -> bool {
        let mut random = Random::of_event(self.seed, number);
        random.below(FAILURES); // the first number decides the status
        random.below(TWINS) == 0
    }

    /// The topic or subject that an event belongs to.
    pub fn topic(&self, bus: Bus, number: usize) -> String {
        let status = self.status(number);
        match bus {
            Bus::Kafka => format!("{KAFKA_TOPIC}.{status}"),
            Bus::Nats => format!("{NATS_SUBJECT}.{}.{status}", Run::dialect(number).name()),
        }
    }

    /// An event as Alibaba would send it now. It contains its number a second time, as the file's size. This reveals
    /// content under the id of another event.
    pub fn callback(&self, number: usize) -> Callback {
        let dialect = Run::dialect(number);
        let id = self.media_id(number);
        let url = format!("http://outin-chaos.oss-cn-shanghai.aliyuncs.com/sv/93ad7c5-182010aa3dc/{id}.mp4");
        let now = OffsetDateTime::now_utc().replace_nanosecond(0).expect("0 is a nanosecond");
        let time = now.format(&Rfc3339).expect("a time of this era");
        let failed = self.status(number) == "failure";
        let body = match dialect {
            Dialect::Vod => {
                let status = if failed { "fail" } else { "success" };
                format!(
                    r#"{{"EventType":"FileUploadComplete","EventTime":"{time}","Status":"{status}","VideoId":"{id}","Size":{number},"FileUrl":"{url}"}}"#
                )
            }
            Dialect::Ims => {
                let status = if failed { "Fail" } else { "Success" };
                format!(
                    r#"{{"EventType":"FileUploadComplete","UserId":1833220977560000,"EventTime":"{time}","MessageBody":{{"Status":"{status}","FileUrl":"{url}","MediaId":"{id}","AppId":"app-1000000","Size":"{number}","MediaType":"video"}}}}"#
                )
            }
        };
        Callback { dialect, body: body.into(), is_twin: self.is_twin(number) }
    }
}

impl Mode {
    /// How many bridges run: two if there is a queue, otherwise one.
    pub fn bridges(self) -> usize {
        match self {
            Mode::Http => 1,
            Mode::Queue => 2,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Mode::Http => "http",
            Mode::Queue => "queue",
        }
    }
}

/// The variables that repeat the run.
impl fmt::Display for Run {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Run { mode, servers, seed, length, rate } = self;
        let (mode, bus, seconds) = (mode.name(), servers.name(), length.as_secs());
        write!(
            formatter,
            "CHAOS_MODE={mode} CHAOS_BUS={bus} CHAOS_SEED={seed} CHAOS_SECONDS={seconds} CHAOS_RATE={rate}"
        )
    }
}
