//! What is done to whom, and when: a pure function of the seed and the mode.
//!
//! Promises: a longer run of the same seed begins with the same steps; what happens to one target doesn't overlap by
//! the plan, while two targets may well be away at once. A machine that is slower than planned performs a step later,
//! never another one.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::events::Mode;

/// Between the begins of two steps, in milliseconds.
const PAUSE: RangeInclusive<u64> = 2_000..=8_000;

/// How long a bus or MNS is away, in milliseconds.
const ABSENCE: RangeInclusive<u64> = 1_000..=12_000;

/// What can be done, and how often each is drawn.
const DEEDS: [(Deed, u64); 7] = [
    (Deed::KillKafka, 3),
    (Deed::FreezeKafka, 3),
    (Deed::KillNats, 3),
    (Deed::FreezeNats, 3),
    (Deed::KillBridge, 2),
    (Deed::StopBridge, 1),
    (Deed::CutOffMns, 3),
];

/// Something that is done to a target, and undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deed {
    /// SIGKILL, and a start some seconds later.
    KillKafka,
    /// SIGSTOP, and SIGCONT some seconds later: connections stay open, nothing answers.
    FreezeKafka,
    /// As Kafka.
    KillNats,
    /// As Kafka.
    FreezeNats,
    /// SIGKILL, and a start at once.
    KillBridge,
    /// SIGTERM, and a start as soon as it has ended.
    StopBridge,
    /// Connections break, and new ones are refused for some seconds.
    CutOffMns,
}

/// What something is done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Kafka,
    Nats,
    Bridge,
    Mns,
}

impl Target {
    pub const ALL: [Target; 4] = [Target::Kafka, Target::Nats, Target::Bridge, Target::Mns];

    /// Whether a mode has it.
    fn is_in(self, mode: Mode) -> bool {
        self != Target::Mns || mode == Mode::Queue
    }
}

impl Deed {
    pub fn target(self) -> Target {
        match self {
            Deed::KillKafka | Deed::FreezeKafka => Target::Kafka,
            Deed::KillNats | Deed::FreezeNats => Target::Nats,
            Deed::KillBridge | Deed::StopBridge => Target::Bridge,
            Deed::CutOffMns => Target::Mns,
        }
    }

    /// What is said of it.
    pub fn name(self) -> &'static str {
        match self {
            Deed::KillKafka => "Kafka killed",
            Deed::FreezeKafka => "Kafka frozen",
            Deed::KillNats => "NATS killed",
            Deed::FreezeNats => "NATS frozen",
            Deed::KillBridge => "bridge killed",
            Deed::StopBridge => "bridge stopped",
            Deed::CutOffMns => "MNS out of reach",
        }
    }

    /// About how long the target needs to come back, once it may: so much the plan leaves it alone. Kafka's JVM takes
    /// seconds to start.
    fn recovery(self) -> Duration {
        Duration::from_secs(match self {
            Deed::KillKafka => 8,
            Deed::StopBridge => 6,
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
    /// How long it lasts; nothing for the bridge, which comes back at once.
    pub lasting: Duration,
}

/// The steps that begin within `length`, in their order.
pub fn plan(mode: Mode, seed: u64, length: Duration) -> Vec<Step> {
    let mut random = Random::new(seed);
    let targets: Vec<Target> = Target::ALL.into_iter().filter(|target| target.is_in(mode)).collect();
    let mut free_from = [Duration::ZERO; Target::ALL.len()];
    let mut steps = Vec::new();
    let mut at = Duration::ZERO;
    loop {
        at += random.milliseconds(PAUSE);
        if at >= length {
            return steps;
        }
        if targets.iter().all(|&target| free_from[target as usize] > at) {
            continue;
        }
        let deed = loop {
            let deed = random.deed(mode);
            if free_from[deed.target() as usize] <= at {
                break deed;
            }
        };
        let absence = random.milliseconds(ABSENCE);
        let lasting = if deed.target() == Target::Bridge { Duration::ZERO } else { absence };
        free_from[deed.target() as usize] = at + lasting + deed.recovery();
        steps.push(Step { at, deed, lasting });
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

    fn deed(&mut self, mode: Mode) -> Deed {
        let deeds = || DEEDS.into_iter().filter(|(deed, _)| deed.target().is_in(mode));
        let mut left = self.below(deeds().map(|(_, weight)| weight).sum());
        for (deed, weight) in deeds() {
            if left < weight {
                return deed;
            }
            left -= weight;
        }
        unreachable!("the number is below the sum of the weights")
    }
}
