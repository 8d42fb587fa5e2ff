//! A destination that refuses for a while, next to one that works.
//!
//! While one refuses, callbacks for the other must be answered and arrive within seconds. Callbacks for the one that
//! refuses must be answered, stored in the spool, and arrive when it accepts again.

use std::time::{Duration, Instant};

use crate::side::{SAFE, Side, stream};
use crate::stage::{Load, Report, Served, Stage, milliseconds};
use crate::support::eventually;
use crate::support::wait::{ARRIVED, SOON, try_eventually};
use crate::verdict::Arrivals;

/// How long it refuses.
const LASTING: Duration = Duration::from_secs(10);

/// The limit for the first events after a broker was killed: at first, the working topic has partitions without a
/// leader too.
const ELECTED: Duration = Duration::from_secs(20);

/// The prefixes of the media ids.
const SICK: &str = "sick";
const WELL: &str = "well";

pub async fn play(stage: Stage) -> Report {
    let side = stage.side.clone();
    let [sick, well] = [SICK, WELL].map(|name| format!("{}-{name}", stage.name));
    side.create(&sick).await;
    side.create(&well).await;
    let served = stage.start(false, &[(SICK, &sick), (WELL, &well)]).await;
    let (sick_load, well_load) = tokio::join!(served.load(SICK), served.load(WELL));
    // The first answers are slow: connections are made and caches are empty.
    let warm = well_load.sender.answers();
    for _ in 0..3 {
        well_load.calm().await;
    }
    let before = well_load.sender.answer_times(warm);
    let broken = refuse(&side, &sick).await;
    let (mut faults, elected) = still_well(&side, &served, &sick, &well, &well_load).await;
    let during = well_load.sender.answer_times(elected);
    accept(&side, &sick, broken).await;
    sick_load.calm().await;
    let sent = [(sick_load.stop().await, sick.as_str()), (well_load.stop().await, well.as_str())];
    let [p50, p99] = [0.5, 0.99].map(|share| {
        let (before, during) = (before.percentile(share), during.percentile(share));
        let ratio = during.as_secs_f64() / before.as_secs_f64().max(1e-6);
        format!("{} -> {} (x{ratio:.1})", milliseconds(before), milliseconds(during))
    });
    let note = format!(", {WELL} before and while {SICK} refuses: p50 {p50}, p99 {p99}");
    let mut report = served
        .finish(&side, &sent, &note, |figures| {
            (figures.spooled == 0).then(|| "the fault had no effect: nothing was spooled".to_owned())
        })
        .await;
    faults.append(&mut report.faults);
    Report { faults, ..report }
}

/// Checks the working destination while the other one refuses. Returns the faults, and the number of answers at the end
/// of the election that killing a broker causes. The election affects both destinations.
async fn still_well(side: &Side, served: &Served, sick: &str, well: &str, load: &Load) -> (Vec<String>, usize) {
    eventually("events of the topic that refuses to be in the spool", SOON, async || {
        (served.spooled().await > 0).then_some(())
    })
    .await;
    // A topic of Kafka without enough copies cannot be read either, because its end is unknown until it accepts again.
    let can_be_read = side.nats().is_some();
    let in_sick = if can_be_read { arrived(side, SICK, sick).await } else { 0 };
    let mut faults = Vec::new();
    let begun = Instant::now();
    let limit = if side.kafka().is_some() { ELECTED } else { ARRIVED };
    faults.extend(late(side, well, load, limit).await);
    let elected = load.sender.answers();
    while begun.elapsed() < LASTING && faults.is_empty() {
        faults.extend(late(side, well, load, ARRIVED).await);
    }
    // A check of the test: the topic must have refused all the time.
    let more = if can_be_read { arrived(side, SICK, sick).await - in_sick } else { 0 };
    let spooled = served.spooled().await;
    if more > 0 || spooled == 0 {
        faults.push(format!(
            "the topic did not refuse all the time: it has accepted {more} events, {spooled} are in the spool"
        ));
    }
    (faults, elected)
}

/// Waits until all callbacks that were answered so far have arrived. Returns the fault if it takes too long.
async fn late(side: &Side, well: &str, load: &Load, limit: Duration) -> Option<String> {
    let answered = load.sender.accepted();
    let mut there = 0;
    let all = try_eventually(limit, async || {
        there = arrived(side, WELL, well).await;
        (there >= answered).then_some(())
    });
    if all.await.is_some() {
        return None;
    }
    Some(format!(
        "{limit:?} after {answered} callbacks for the topic that works were answered with 200, {there} of them had \
         arrived, while another topic refused"
    ))
}

/// How many events of a load are at the destination now.
async fn arrived(side: &Side, prefix: &str, destination: &str) -> usize {
    let records = side.read(destination).await;
    // An error must not count as an empty destination.
    let records = records.unwrap_or_else(|error| panic!("{destination} cannot be read: {error}"));
    Arrivals::of(prefix, &records).found()
}

/// Makes a destination refuse: a full stream, or a topic without enough copies. Returns the broker that was killed.
async fn refuse(side: &Side, sick: &str) -> Option<usize> {
    if let Some(kafka) = side.kafka() {
        let copies = [("min.insync.replicas", "3")];
        kafka.configure_topic(sick, &copies).await.unwrap_or_else(|error| panic!("not configured: {error}"));
        let place = side.leader(sick).await;
        side.kill(place).await;
        return Some(place);
    }
    limit(side, sick, true).await;
    None
}

/// Lets a destination accept again.
async fn accept(side: &Side, sick: &str, broken: Option<usize>) {
    match broken {
        Some(place) => {
            side.start_again(place).await;
            side.settled(sick).await;
            let kafka = side.kafka().expect("only brokers are killed");
            kafka.configure_topic(sick, &SAFE).await.unwrap_or_else(|error| panic!("not configured: {error}"));
        }
        None => limit(side, sick, false).await,
    }
}

/// Makes a stream refuse new messages (10077), or accept them again.
async fn limit(side: &Side, sick: &str, is_full: bool) {
    let (nats, stream) = (side.nats().expect("a stream"), stream(sick));
    nats.set_full(&stream, is_full).await.unwrap_or_else(|| panic!("stream {stream} is not changed"));
}
