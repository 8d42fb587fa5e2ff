//! A destination that does not exist, because of a typo in its name, next to one that works.
//!
//! Callbacks for it must be answered with 200 and stored in the spool, and none may become a dead letter. Callbacks for
//! the other destination must arrive. The log must name the destination at level ERROR within about a minute. When the
//! destination is created, all events must arrive automatically.

use std::time::{Duration, Instant};

use crate::stage::{Report, Stage};
use crate::support::eventually;
use crate::support::wait::{ARRIVED, try_eventually};
use crate::verdict::Arrivals;

/// How long it may take until the log names the destination: the bridge reports it after 60 s.
const REPORTED: Duration = Duration::from_secs(75);

/// The prefixes of the media ids.
const LOST: &str = "typo";
const WELL: &str = "well";

pub async fn play(stage: Stage) -> Report {
    let side = stage.side.clone();
    let (typo, well) = (format!("{}-evnets", stage.name), format!("{}-events", stage.name));
    side.create(&well).await;
    let served = stage.start(false, &[(LOST, &typo), (WELL, &well)]).await;
    let begun = Instant::now();
    let (typo_load, well_load) = tokio::join!(served.load(LOST), served.load(WELL));
    let lost = typo_load.stop().await;
    let mut faults = Vec::new();
    let reported = try_eventually(REPORTED, async || {
        if is_reported(&served.program.process().log(), &typo) {
            return Some(Some(begun.elapsed()));
        }
        // After a dead letter, there is nothing to report any more, so do not wait.
        (served.figures().await.dead_letters > 0).then_some(None)
    });
    let reported = reported.await.flatten();
    if reported.is_none() {
        faults.push(format!("after {:.0?} no line of level ERROR names {typo}", begun.elapsed()));
    }
    let (answered, spooled) = (well_load.sender.accepted(), served.spooled().await);
    let is_there = async || {
        let records = side.read(&well).await.unwrap_or_else(|error| panic!("{well} cannot be read: {error}"));
        (Arrivals::of(WELL, &records).found() >= answered).then_some(())
    };
    eventually("events of the topic that exists to arrive", ARRIVED, is_there).await;
    side.create(&typo).await;
    let well_sent = well_load.stop().await;
    let after = reported.map_or_else(|| "not".to_owned(), |after| format!("after {:.0} s", after.as_secs_f64()));
    let note = format!(", reported {after}, {spooled} in the spool before the topic was created");
    let mut report = served
        .finish(&side, &[(lost, &typo), (well_sent, &well)], &note, |figures| {
            (figures.spooled == 0).then(|| "the fault had no effect: nothing was spooled".to_owned())
        })
        .await;
    faults.append(&mut report.faults);
    Report { faults, ..report }
}

fn is_reported(log: &str, destination: &str) -> bool {
    log.lines().any(|line| line.contains("ERROR") && line.contains(destination))
}
