//! What is done to whom, and when: a pure function of the seed, the mode and the number of servers.
//!
//! Promises: a longer run of the same seed begins with the same steps; a run of a minute kills the bridge twice or more
//! and makes a bus unavailable; what happens to one target does not overlap by the plan, while two targets may well be
//! unavailable at once. A machine that is slower than planned performs a step later, never another one.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::events::{Mode, Run, Servers};

/// Between the begins of two steps, in milliseconds.
const PAUSE: RangeInclusive<u64> = 2_000..=8_000;

/// How long a bus or MNS is down, in milliseconds.
const ABSENCE: RangeInclusive<u64> = 1_000..=12_000;

/// What can be done, and how often each is drawn.
const DEEDS: [(Deed, u64); 16] = [
    (Deed::KillKafka, 3),
    (Deed::FreezeKafka, 3),
    (Deed::KillAllKafka, 1),
    (Deed::RefuseKafka, 2),
    (Deed::KillNats, 3),
    (Deed::FreezeNats, 3),
    (Deed::KillAllNats, 1),
    (Deed::StepDownNats, 2),
    (Deed::RefuseNats, 2),
    (Deed::KillBridge, 3),
    (Deed::StopBridge, 1),
    (Deed::StopBridgeTwice, 1),
    (Deed::ReloadBridge, 2),
    (Deed::FillDisk, 2),
    (Deed::CutOffMns, 3),
    (Deed::FreezeBridge, 1),
];

/// From when on a deed is overdue if it was planned less often: so no run proves too little. The disk comes first, and
/// then a bus: a spool that has been large reuses its room, and does not notice a full disk.
const OVERDUE: [(Duration, Deed, usize); 4] = [
    (Duration::ZERO, Deed::FillDisk, 1),
    (Duration::from_secs(8), Deed::KillAllNats, 1),
    (Duration::from_secs(15), Deed::KillBridge, 1),
    (Duration::from_secs(32), Deed::KillBridge, 2),
];

/// Something that is done to a target, and undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deed {
    /// SIGKILL of one broker, and a start some seconds later.
    KillKafka,
    /// SIGSTOP of one broker, and SIGCONT some seconds later: connections stay open, nothing answers.
    FreezeKafka,
    /// SIGKILL of all brokers, and a start some seconds later.
    KillAllKafka,
    /// One topic wants all copies, and one broker is killed: the topic refuses for some seconds, others do not.
    RefuseKafka,
    /// As Kafka.
    KillNats,
    /// As Kafka.
    FreezeNats,
    /// As Kafka.
    KillAllNats,
    /// The leader of one stream steps down.
    StepDownNats,
    /// One stream is full for some seconds.
    RefuseNats,
    /// SIGKILL, and a start at once.
    KillBridge,
    /// SIGTERM, and a start as soon as it has ended.
    StopBridge,
    /// SIGTERM and a second one while it stops, and a start as soon as it has ended.
    StopBridgeTwice,
    /// SIGSTOP, and SIGCONT a moment later.
    FreezeBridge,
    /// Another configuration of the same meaning, and SIGHUP.
    ReloadBridge,
    /// The disk of the spool is full for some seconds.
    FillDisk,
    /// Connections break, and new ones are refused for some seconds.
    CutOffMns,
}

/// What something is done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Kafka,
    Nats,
    Bridge,
    Disk,
    Mns,
}

impl Target {
    pub const ALL: [Target; 5] = [Target::Kafka, Target::Nats, Target::Bridge, Target::Disk, Target::Mns];
}

impl Deed {
    pub const ALL: [Deed; DEEDS.len()] = {
        let mut all = [Deed::KillKafka; DEEDS.len()];
        let mut index = 0;
        while index < all.len() {
            all[index] = DEEDS[index].0;
            index += 1;
        }
        all
    };

    pub fn target(self) -> Target {
        match self {
            Deed::KillKafka | Deed::FreezeKafka | Deed::KillAllKafka | Deed::RefuseKafka => Target::Kafka,
            Deed::KillNats | Deed::FreezeNats | Deed::KillAllNats | Deed::StepDownNats | Deed::RefuseNats => {
                Target::Nats
            }
            Deed::KillBridge | Deed::StopBridge | Deed::StopBridgeTwice | Deed::FreezeBridge | Deed::ReloadBridge => {
                Target::Bridge
            }
            Deed::FillDisk => Target::Disk,
            Deed::CutOffMns => Target::Mns,
        }
    }

    /// What is said of it.
    pub fn name(self) -> &'static str {
        match self {
            Deed::KillKafka => "Kafka killed",
            Deed::FreezeKafka => "Kafka frozen",
            Deed::KillAllKafka => "all of Kafka killed",
            Deed::RefuseKafka => "a topic of Kafka refuses",
            Deed::KillNats => "NATS killed",
            Deed::FreezeNats => "NATS frozen",
            Deed::KillAllNats => "all of NATS killed",
            Deed::StepDownNats => "a leader of NATS steps down",
            Deed::RefuseNats => "a stream of NATS is full",
            Deed::KillBridge => "bridge killed",
            Deed::StopBridge => "bridge stopped",
            Deed::StopBridgeTwice => "bridge stopped with two signals",
            Deed::FreezeBridge => "bridge frozen",
            Deed::ReloadBridge => "configuration reloaded",
            Deed::FillDisk => "disk full",
            Deed::CutOffMns => "MNS out of reach",
        }
    }

    /// Whether runs of this kind have it. A single broker has all copies of a topic as long as it answers.
    fn is_in(self, mode: Mode, servers: Servers) -> bool {
        match self {
            Deed::RefuseKafka | Deed::StepDownNats => servers == Servers::Cluster,
            Deed::CutOffMns => mode == Mode::Queue,
            _ => true,
        }
    }

    /// How long it lasts, in milliseconds; 0 where the target comes back at once.
    fn lasting(self) -> RangeInclusive<u64> {
        match self {
            Deed::KillBridge | Deed::StopBridge | Deed::StopBridgeTwice | Deed::ReloadBridge | Deed::StepDownNats => {
                0..=0
            }
            Deed::FreezeBridge => 500..=3_000,
            Deed::FillDisk => 8_000..=16_000,
            _ => ABSENCE,
        }
    }

    /// About how long the target needs to come back, once it may: so long the plan does nothing to it. Kafka's JVM takes
    /// seconds to start.
    fn recovery(self) -> Duration {
        Duration::from_secs(match self {
            Deed::KillKafka | Deed::KillAllKafka | Deed::RefuseKafka => 8,
            Deed::StopBridge | Deed::StopBridgeTwice => 6,
            _ => 2,
        })
    }
}

/// One deed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// When, from the start of the run.
    pub at: Duration,
    pub deed: Deed,
    /// To which of several servers, streams or bridges: a random number.
    pub which: usize,
    /// How long it lasts; nothing where the target comes back at once.
    pub lasting: Duration,
}

/// The steps that begin within the run, in their order.
pub fn plan(run: &Run) -> Vec<Step> {
    let mut random = Random::new(run.seed);
    let deeds: Vec<(Deed, u64)> = DEEDS.into_iter().filter(|(deed, _)| deed.is_in(run.mode, run.servers)).collect();
    let mut free_from = [Duration::ZERO; Target::ALL.len()];
    let mut steps: Vec<Step> = Vec::new();
    let mut at = Duration::ZERO;
    loop {
        at += random.milliseconds(PAUSE);
        if at >= run.length {
            return steps;
        }
        let is_free = |deed: Deed| free_from[deed.target() as usize] <= at;
        if !deeds.iter().any(|&(deed, _)| is_free(deed)) {
            continue;
        }
        let planned = |deed| steps.iter().filter(|step| step.deed == deed).count();
        let overdue =
            OVERDUE.iter().find(|(from, deed, times)| *from <= at && is_free(*deed) && planned(*deed) < *times);
        let deed = match overdue {
            Some((_, deed, _)) => *deed,
            None => loop {
                let deed = random.one_of(&deeds);
                if is_free(deed) {
                    break deed;
                }
            },
        };
        let lasting = random.milliseconds(deed.lasting());
        let which = usize::try_from(random.below(1 << 16)).expect("a small number");
        free_from[deed.target() as usize] = at + lasting + deed.recovery();
        steps.push(Step { at, deed, which, lasting });
    }
}

/// SplitMix64: small, and the same numbers for the same seed in every version of this program.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The numbers of one event: they don't depend on which were made before.
    pub fn of_event(seed: u64, number: usize) -> Random {
        Random(Random(seed).next() ^ number as u64)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`; its slight unevenness doesn't matter here.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn milliseconds(&mut self, range: RangeInclusive<u64>) -> Duration {
        Duration::from_millis(range.start() + self.below(range.end() - range.start() + 1))
    }

    fn one_of(&mut self, weighted: &[(Deed, u64)]) -> Deed {
        let mut left = self.below(weighted.iter().map(|(_, weight)| weight).sum());
        for &(deed, weight) in weighted {
            if left < weight {
                return deed;
            }
            left -= weight;
        }
        unreachable!("the number is below the sum of the weights")
    }
}

// --- the plan, tried ----------------------------------------------------------------------------------------------

/// Tries the promises of the plan for many seeds: a run that does too little proves too little.
///
/// # Panics
/// When one does not hold.
pub fn prove() {
    const MINUTE: Duration = Duration::from_secs(60);
    let kinds = [Mode::Http, Mode::Queue].into_iter().flat_map(|mode| {
        [Servers::Single, Servers::Cluster].map(|servers| Run { mode, servers, seed: 0, length: MINUTE, rate: 1 })
    });
    for kind in kinds {
        let mut seen = BTreeSet::new();
        for seed in 0..200 {
            let short = plan(&Run { seed, ..kind.clone() });
            let long = plan(&Run { seed, length: MINUTE * 2, ..kind.clone() });
            assert_eq!(short[..], long[..short.len()], "seed {seed}: a longer run begins otherwise");
            let times = |wanted: Deed| short.iter().filter(|step| step.deed == wanted).count();
            assert!(times(Deed::KillBridge) >= 2, "seed {seed}: the bridge is killed less than twice: {short:?}");
            assert!(times(Deed::KillAllNats) >= 1, "seed {seed}: no bus is unavailable: {short:?}");
            seen.extend(long.iter().map(|step| step.deed));
        }
        let wanted: BTreeSet<Deed> = Deed::ALL.into_iter().filter(|deed| deed.is_in(kind.mode, kind.servers)).collect();
        assert_eq!(seen, wanted, "{kind}: deeds that are never done, or must not be");
    }
}
