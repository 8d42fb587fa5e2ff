//! The plan: which action happens to which target, and when. It is a pure function of the seed, the mode and the number
//! of servers.
//!
//! Promises: a longer run with the same seed begins with the same steps. A run of a minute kills the bridge at least
//! twice and makes a bus unavailable. The actions on one target do not overlap, but two targets may be unavailable at
//! the same time. A slow machine performs a step later, but never a different one.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::events::{Mode, Run, Servers};

/// The time between the starts of two steps, in milliseconds.
const PAUSE: RangeInclusive<u64> = 2_000..=8_000;

/// How long a bus or MNS is down, in milliseconds.
const ABSENCE: RangeInclusive<u64> = 1_000..=12_000;

/// All actions with their weights.
const ACTIONS: [(Action, u64); 16] = [
    (Action::KillKafka, 3),
    (Action::FreezeKafka, 3),
    (Action::KillAllKafka, 1),
    (Action::RefuseKafka, 2),
    (Action::KillNats, 3),
    (Action::FreezeNats, 3),
    (Action::KillAllNats, 1),
    (Action::StepDownNats, 2),
    (Action::RefuseNats, 2),
    (Action::KillBridge, 3),
    (Action::StopBridge, 1),
    (Action::StopBridgeTwice, 1),
    (Action::ReloadBridge, 2),
    (Action::FillDisk, 2),
    (Action::CutOffMns, 3),
    (Action::FreezeBridge, 1),
];

/// From this time on, an action must have been planned this often, or a run proves too little. The disk comes first,
/// and then a bus: a spool that has been large reuses its space, and does not notice a full disk.
const OVERDUE: [(Duration, Action, usize); 4] = [
    (Duration::ZERO, Action::FillDisk, 1),
    (Duration::from_secs(8), Action::KillAllNats, 1),
    (Duration::from_secs(15), Action::KillBridge, 1),
    (Duration::from_secs(32), Action::KillBridge, 2),
];

/// Something that is done to a target, and then undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// SIGKILL of one broker, and a start some seconds later.
    KillKafka,
    /// SIGSTOP of one broker, and SIGCONT some seconds later: connections stay open, nothing answers.
    FreezeKafka,
    /// SIGKILL of all brokers, and a start some seconds later.
    KillAllKafka,
    /// One topic requires all copies, and one broker is killed: only this topic refuses, for some seconds.
    RefuseKafka,
    /// Like for Kafka.
    KillNats,
    /// Like for Kafka.
    FreezeNats,
    /// Like for Kafka.
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
    /// An equivalent configuration, and SIGHUP.
    ReloadBridge,
    /// The disk of the spool is full for some seconds.
    FillDisk,
    /// Connections break, and new ones are refused for some seconds.
    CutOffMns,
}

/// The target of an action.
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

impl Action {
    pub const ALL: [Action; ACTIONS.len()] = {
        let mut all = [Action::KillKafka; ACTIONS.len()];
        let mut index = 0;
        while index < all.len() {
            all[index] = ACTIONS[index].0;
            index += 1;
        }
        all
    };

    pub fn target(self) -> Target {
        match self {
            Action::KillKafka | Action::FreezeKafka | Action::KillAllKafka | Action::RefuseKafka => Target::Kafka,
            Action::KillNats | Action::FreezeNats | Action::KillAllNats | Action::StepDownNats | Action::RefuseNats => {
                Target::Nats
            }
            Action::KillBridge
            | Action::StopBridge
            | Action::StopBridgeTwice
            | Action::FreezeBridge
            | Action::ReloadBridge => Target::Bridge,
            Action::FillDisk => Target::Disk,
            Action::CutOffMns => Target::Mns,
        }
    }

    /// Its description.
    pub fn name(self) -> &'static str {
        match self {
            Action::KillKafka => "Kafka killed",
            Action::FreezeKafka => "Kafka frozen",
            Action::KillAllKafka => "all of Kafka killed",
            Action::RefuseKafka => "a topic of Kafka refuses",
            Action::KillNats => "NATS killed",
            Action::FreezeNats => "NATS frozen",
            Action::KillAllNats => "all of NATS killed",
            Action::StepDownNats => "a leader of NATS steps down",
            Action::RefuseNats => "a stream of NATS is full",
            Action::KillBridge => "bridge killed",
            Action::StopBridge => "bridge stopped",
            Action::StopBridgeTwice => "bridge stopped with two signals",
            Action::FreezeBridge => "bridge frozen",
            Action::ReloadBridge => "configuration reloaded",
            Action::FillDisk => "disk full",
            Action::CutOffMns => "MNS out of reach",
        }
    }

    /// Whether runs of this kind have it. A single broker has all copies of a topic while it answers.
    fn is_in(self, mode: Mode, servers: Servers) -> bool {
        match self {
            Action::RefuseKafka | Action::StepDownNats => servers == Servers::Cluster,
            Action::CutOffMns => mode == Mode::Queue,
            _ => true,
        }
    }

    /// How long it lasts, in milliseconds; 0 if the target is restarted at once.
    fn lasting(self) -> RangeInclusive<u64> {
        match self {
            Action::KillBridge
            | Action::StopBridge
            | Action::StopBridgeTwice
            | Action::ReloadBridge
            | Action::StepDownNats => 0..=0,
            Action::FreezeBridge => 500..=3_000,
            Action::FillDisk => 8_000..=16_000,
            _ => ABSENCE,
        }
    }

    /// About how long the target needs to work again afterwards. The plan does nothing to it during this time. Kafka's
    /// JVM takes seconds to start.
    fn recovery(self) -> Duration {
        Duration::from_secs(match self {
            Action::KillKafka | Action::KillAllKafka | Action::RefuseKafka => 8,
            Action::StopBridge | Action::StopBridgeTwice => 6,
            _ => 2,
        })
    }
}

/// One action in the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The time since the start of the run.
    pub at: Duration,
    pub action: Action,
    /// A random number that selects one of several servers, streams or bridges.
    pub which: usize,
    /// How long it lasts; nothing if the target is restarted at once.
    pub lasting: Duration,
}

/// The steps that begin within the run, in order.
pub fn plan(run: &Run) -> Vec<Step> {
    let mut random = Random::new(run.seed);
    let actions: Vec<(Action, u64)> =
        ACTIONS.into_iter().filter(|(action, _)| action.is_in(run.mode, run.servers)).collect();
    let mut free_from = [Duration::ZERO; Target::ALL.len()];
    let mut steps: Vec<Step> = Vec::new();
    let mut at = Duration::ZERO;
    loop {
        at += random.milliseconds(PAUSE);
        if at >= run.length {
            return steps;
        }
        let is_free = |action: Action| free_from[action.target() as usize] <= at;
        if !actions.iter().any(|&(action, _)| is_free(action)) {
            continue;
        }
        let planned = |action| steps.iter().filter(|step| step.action == action).count();
        let overdue =
            OVERDUE.iter().find(|(from, action, times)| *from <= at && is_free(*action) && planned(*action) < *times);
        let action = match overdue {
            Some((_, action, _)) => *action,
            None => loop {
                let action = random.one_of(&actions);
                if is_free(action) {
                    break action;
                }
            },
        };
        let lasting = random.milliseconds(action.lasting());
        let which = usize::try_from(random.below(1 << 16)).expect("a small number");
        free_from[action.target() as usize] = at + lasting + action.recovery();
        steps.push(Step { at, action, which, lasting });
    }
}

/// SplitMix64: small, with the same numbers for the same seed in every version of this program.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The numbers of one event. They do not depend on earlier ones.
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

    /// A number below `end`. It is not perfectly uniform, which does not matter here.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn milliseconds(&mut self, range: RangeInclusive<u64>) -> Duration {
        Duration::from_millis(range.start() + self.below(range.end() - range.start() + 1))
    }

    fn one_of(&mut self, weighted: &[(Action, u64)]) -> Action {
        let mut left = self.below(weighted.iter().map(|(_, weight)| weight).sum());
        for &(action, weight) in weighted {
            if left < weight {
                return action;
            }
            left -= weight;
        }
        unreachable!("the number is below the sum of the weights")
    }
}

// --- a test of the plan -------------------------------------------------------------------------------------------

/// Tests the promises of the plan for many seeds, because a run that does too little proves too little.
///
/// # Panics
/// A promise is broken.
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
            assert_eq!(short[..], long[..short.len()], "seed {seed}: a longer run begins differently");
            let times = |wanted: Action| short.iter().filter(|step| step.action == wanted).count();
            assert!(times(Action::KillBridge) >= 2, "seed {seed}: the bridge is killed less than twice: {short:?}");
            assert!(times(Action::KillAllNats) >= 1, "seed {seed}: no bus is unavailable: {short:?}");
            seen.extend(long.iter().map(|step| step.action));
        }
        let wanted: BTreeSet<Action> =
            Action::ALL.into_iter().filter(|action| action.is_in(kind.mode, kind.servers)).collect();
        assert_eq!(seen, wanted, "{kind}: actions that never happen, or must not happen");
    }
}
