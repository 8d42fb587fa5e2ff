//! What is sent, and the judge of it.
//!
//! Each series of callbacks has a name and numbers. The media id of a callback has both, so that a record on the bus
//! says which callback it is.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::task::JoinHandle;

use crate::support::read::Record;
use crate::support::sender::{Alibaba, Callback, Dialect, send_all};

/// Callbacks per second of the steady series.
pub const RATE: u32 = 100;

/// How long Alibaba tries one callback at most: three tries of up to 5 s, a second apart.
const TRYING: Duration = Duration::from_secs(17);

/// A callback of a series.
pub fn callback(series: &str, number: usize) -> Callback {
    let dialect = if number.is_multiple_of(2) { Dialect::Vod } else { Dialect::Ims };
    let id = media_id(series, number);
    let url = format!("http://outin-node.oss-cn-shanghai.aliyuncs.com/sv/93ad7c5-182010aa3dc/{id}.mp4");
    let now = OffsetDateTime::now_utc().replace_nanosecond(0).expect("0 is a nanosecond");
    let time = now.format(&Rfc3339).expect("a time of this era");
    let content = match dialect {
        Dialect::Vod => json!({ "Status": "success", "VideoId": id, "Size": number, "FileUrl": url }),
        Dialect::Ims => json!({ "UserId": 1_833_220_977_560_000_u64, "MessageBody": {
            "Status": "Success",
            "FileUrl": url,
            "MediaId": id,
            "AppId": "app-1000000",
            "Size": number.to_string(),
            "MediaType": "video",
        } }),
    };
    let mut body = json!({ "EventType": "FileUploadComplete", "EventTime": time });
    for (key, value) in content.as_object().expect("an object") {
        body[key] = value.clone();
    }
    Callback { dialect, body: body.to_string().into(), is_twin: false }
}

fn media_id(series: &str, number: usize) -> String {
    format!("{series}-{number}")
}

/// A series that is sent at a steady rate until it is stopped.
#[derive(Debug)]
pub struct Load {
    sender: Arc<Alibaba>,
    begun: Arc<AtomicUsize>,
    stopping: Arc<AtomicBool>,
    sending: JoinHandle<Vec<bool>>,
}

/// The series of [`Load`].
pub const STEADY: &str = "steady";

impl Load {
    /// Begins to post to an address.
    pub fn start(to: SocketAddr) -> Load {
        let sender = Arc::new(Alibaba::new(to));
        let (begun, stopping) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let next = {
            let (begun, stopping) = (begun.clone(), stopping.clone());
            move |number| {
                begun.store(number, Ordering::Relaxed);
                (!stopping.load(Ordering::Relaxed)).then(|| callback(STEADY, number))
            }
        };
        let sending = tokio::spawn(send_all(sender.clone(), RATE, next));
        Load { sender, begun, stopping, sending }
    }

    /// How many callbacks were begun.
    pub fn begun(&self) -> usize {
        self.begun.load(Ordering::Relaxed)
    }

    /// The first callback that could still be tried now.
    pub fn still_trying(&self) -> usize {
        self.begun().saturating_sub(usize::try_from(TRYING.as_secs() * u64::from(RATE)).expect("small"))
    }

    /// The sender, with its counts.
    pub fn sender(&self) -> &Alibaba {
        &self.sender
    }

    /// Ends it, and returns for each callback whether it was answered with 200.
    pub async fn stop(self) -> (Arc<Alibaba>, Vec<bool>) {
        self.stopping.store(true, Ordering::Relaxed);
        (self.sender, self.sending.await.expect("sending does not panic"))
    }
}

/// Posts `count` callbacks of a series, and returns for each whether it was answered with 200.
pub async fn post(series: &'static str, to: SocketAddr, rate: u32, count: usize) -> Vec<bool> {
    let next = move |number| (number < count).then(|| callback(series, number));
    send_all(Arc::new(Alibaba::new(to)), rate, next).await
}

/// How often each event is on the bus.
#[derive(Debug, Default)]
pub struct Found(HashMap<String, u32>);

impl Found {
    /// Adds a record.
    pub fn add(&mut self, record: &Record) {
        let envelope: Value = serde_json::from_slice(&record.body).unwrap_or_default();
        *self.0.entry(envelope["mediaid"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
    }

    /// The numbers of the accepted callbacks of a series that are not there.
    pub fn missing(&self, series: &str, accepted: &[bool]) -> Vec<usize> {
        let numbers = accepted.iter().enumerate().filter(|(_, accepted)| **accepted).map(|(number, _)| number);
        numbers.filter(|&number| !self.0.contains_key(&media_id(series, number))).collect()
    }

    /// How many records repeat an event of a series.
    pub fn repeats(&self, series: &str) -> u32 {
        let prefix = format!("{series}-");
        self.0.iter().filter(|(id, _)| id.starts_with(&prefix)).map(|(_, times)| times - 1).sum()
    }
}

/// The callbacks that were given up, in a range and outside of all ranges.
pub fn given_up(accepted: &[bool], ranges: &[Range<usize>]) -> (usize, Vec<usize>) {
    let numbers = accepted.iter().enumerate().filter(|(_, accepted)| !**accepted).map(|(number, _)| number);
    let (inside, outside): (Vec<usize>, Vec<usize>) =
        numbers.partition(|number| ranges.iter().any(|range| range.contains(number)));
    (inside.len(), outside)
}

/// Tests the judge with every error that it must find. A run that cannot fail proves nothing.
///
/// # Panics
/// The judge is wrong.
pub fn prove() {
    let record = |body: &str| Record {
        bus: crate::support::read::Bus::Kafka,
        topic: String::new(),
        partition: None,
        offset: 0,
        key: None,
        headers: Vec::new(),
        body: body.to_string().into(),
    };
    let mut found = Found::default();
    for id in ["steady-0", "steady-2", "steady-2", "burst-1"] {
        found.add(&record(&format!(r#"{{"mediaid":"{id}"}}"#)));
    }
    found.add(&record("no JSON"));
    assert_eq!(found.missing(STEADY, &[true, false, true]), Vec::<usize>::new());
    assert_eq!(found.missing(STEADY, &[true, true, true, true]), [1, 3]);
    assert_eq!(found.missing("burst", &[true, true]), [0]);
    assert_eq!((found.repeats(STEADY), found.repeats("burst")), (1, 0));
    assert_eq!(given_up(&[true, false, false, true, false], &[1..2, 4..9]), (2, vec![2]));
}
