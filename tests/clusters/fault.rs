//! The table of scenarios in which servers or the network fail, and how each fault is caused and ended.
//!
//! Promises: after a fault all servers run and the network works. Each scenario defines the effect that its fault must
//! have.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::time::{MissedTickBehavior, interval};

use crate::Form;
use crate::side::{SERVERS, Side};
use crate::stage::{Figures, Report, Stage};
use crate::support::eventually;
use crate::support::read::Bus;
use crate::support::sender::Times;
use crate::support::toxiproxy::Toxic;
use crate::support::wait::{SETTLED, let_pass};

/// The time between two step-downs.
const STEP_DOWN_EVERY: Duration = Duration::from_secs(1);

/// How long a network resets connections, and how long it then leaves them alone.
const RESETS: Duration = Duration::from_millis(1_500);

/// A scenario with a fault.
#[derive(Debug)]
pub struct Scenario {
    pub name: &'static str,
    /// The buses, and the shortest form of a run that includes it.
    pub on: &'static [(Bus, Form)],
    fault: Fault,
    /// Its duration in seconds.
    lasting: u64,
    effect: Effect,
}

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The leader of the stream steps down repeatedly.
    LeaderStepsDown,
    /// The leader of JetStream steps down repeatedly.
    ControllerStepsDown,
    /// Servers are killed, and started at the end of the fault.
    Killed(Who),
    /// Servers are frozen until the end of the fault.
    Frozen(Who),
    /// One server after the other is stopped and started.
    Rolling,
    /// The network changes all connections.
    Network(Toxic),
    /// The network resets all connections repeatedly.
    Resets,
}

/// The servers of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    /// The leader of the stream, or of the first partition.
    Leader,
    /// The leader of JetStream, or the active controller.
    Controller,
    /// A server that the bridge is connected to, or that leads a partition and is not the controller.
    Used,
    /// The leader and another server, so that there is no quorum.
    Two,
    All,
}

/// The effect that a fault must have, or the scenario proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// At least this many callbacks were spooled.
    Spooled(u64),
    /// The leader, or the server in use, changed at least this often.
    Changes(u32),
    /// Callbacks were spooled, or one in a hundred was answered after at least this many milliseconds.
    Slow(u64),
}

const FULL: &[(Bus, Form)] = &[(Bus::Nats, Form::Full), (Bus::Kafka, Form::Full)];
const SHORT: &[(Bus, Form)] = &[(Bus::Nats, Form::Short), (Bus::Kafka, Form::Short)];
const SHORT_ON_NATS: &[(Bus, Form)] = &[(Bus::Nats, Form::Short), (Bus::Kafka, Form::Full)];

/// All scenarios. Kafka has no request for a step-down.
pub const SCENARIOS: &[Scenario] = &[
    row("leader steps down", &[(Bus::Nats, Form::Short)], Fault::LeaderStepsDown, 8, Effect::Changes(3)),
    row("controller steps down", &[(Bus::Nats, Form::Full)], Fault::ControllerStepsDown, 12, Effect::Changes(3)),
    row("leader killed", SHORT, Fault::Killed(Who::Leader), 5, Effect::Changes(1)),
    row("controller killed", FULL, Fault::Killed(Who::Controller), 8, Effect::Changes(1)),
    row("server in use killed", FULL, Fault::Killed(Who::Used), 8, Effect::Changes(1)),
    row("two killed", FULL, Fault::Killed(Who::Two), 8, Effect::Spooled(100)),
    row("all killed", FULL, Fault::Killed(Who::All), 6, Effect::Spooled(100)),
    row("rolling restart", FULL, Fault::Rolling, 0, Effect::Changes(1)),
    row("leader frozen", FULL, Fault::Frozen(Who::Leader), 10, Effect::Spooled(1)),
    row("server in use frozen", FULL, Fault::Frozen(Who::Used), 10, Effect::Spooled(1)),
    row("two frozen", FULL, Fault::Frozen(Who::Two), 10, Effect::Spooled(100)),
    row("all frozen", FULL, Fault::Frozen(Who::All), 10, Effect::Spooled(100)),
    row("network slow", FULL, Fault::Network(SLOW), 10, Effect::Slow(300)),
    row("network narrow", FULL, Fault::Network(NARROW), 10, Effect::Spooled(10)),
    row("connections reset", FULL, Fault::Resets, 12, Effect::Slow(300)),
    row("half-open", SHORT_ON_NATS, Fault::Network(Toxic::Hang), 5, Effect::Spooled(100)),
];

/// Acknowledgements take 0.4 to 1.2 s: some less than the deadline of a callback, some more.
const SLOW: Toxic = Toxic::Latency { milliseconds: 400, jitter: 200 };

/// Less than the load needs.
const NARROW: Toxic = Toxic::Bandwidth { kilobytes: 5 };

const fn row(name: &'static str, on: &'static [(Bus, Form)], fault: Fault, lasting: u64, effect: Effect) -> Scenario {
    Scenario { name, on, fault, lasting, effect }
}

/// Runs a scenario.
pub async fn play(stage: Stage, scenario: &Scenario) -> Report {
    let (side, name) = (stage.side.clone(), stage.name.clone());
    side.create(&name).await;
    let served = stage.start(scenario.fault.is_in_network(), &[("some", &name)]).await;
    let load = served.load("some").await;
    let calm = load.sender.answers();
    let changes = scenario.cause(&side, &name).await;
    side.settled(&name).await;
    let times = load.sender.answer_times(calm);
    load.calm().await;
    let sent = load.stop().await;
    let note = if changes > 0 { format!(", changes {changes}") } else { String::new() };
    let effect = |figures: Figures| scenario.effect.missed(figures, changes, &times);
    served.finish(&side, &[(sent, &name)], &note, effect).await
}

impl Scenario {
    /// Causes the fault and ends it. Returns how often the leader, or the server in use, changed.
    async fn cause(&self, side: &Side, name: &str) -> u32 {
        let lasting = Duration::from_secs(self.lasting);
        match self.fault {
            Fault::LeaderStepsDown => {
                again_and_again(lasting, async || {
                    let before = side.leader(name).await;
                    side.step_down(name).await && side.leader(name).await != before
                })
                .await
            }
            Fault::ControllerStepsDown => {
                again_and_again(lasting, async || {
                    let before = side.controller().await;
                    side.step_down_controller().await && side.controller().await != before
                })
                .await
            }
            Fault::Killed(who) => killed(side, name, who, lasting).await,
            Fault::Frozen(who) => {
                let places = who.places(side, name).await;
                join_all(places.iter().map(|&place| side.freeze(place))).await;
                let_pass(lasting).await;
                join_all(places.iter().map(|&place| side.thaw(place))).await;
                0
            }
            Fault::Rolling => rolling(side, name).await,
            Fault::Network(toxic) => {
                side.add_toxic(toxic).await;
                let_pass(lasting).await;
                side.clear_toxics().await;
                0
            }
            Fault::Resets => {
                let begun = Instant::now();
                while begun.elapsed() < lasting {
                    side.add_toxic(Toxic::Reset).await;
                    let_pass(RESETS).await;
                    side.clear_toxics().await;
                    let_pass(RESETS).await;
                }
                0
            }
        }
    }
}

impl Fault {
    /// Whether the bridge must reach the servers through proxies.
    fn is_in_network(self) -> bool {
        matches!(self, Fault::Network(_) | Fault::Resets)
    }
}

impl Who {
    /// The current servers.
    async fn places(self, side: &Side, name: &str) -> Vec<usize> {
        match self {
            Who::Leader => vec![side.leader(name).await],
            Who::Controller => vec![side.controller().await],
            Who::Used => vec![side.used(name).await],
            Who::Two => {
                let leader = side.leader(name).await;
                vec![leader, (leader + 1) % SERVERS]
            }
            Who::All => (0..SERVERS).collect(),
        }
    }

    /// The current server in this role, if it is a single one.
    async fn one(self, side: &Side, name: &str) -> Option<usize> {
        match self {
            Who::Two | Who::All => None,
            _ => self.places(side, name).await.first().copied(),
        }
    }
}

impl Effect {
    /// What is missing of the effect.
    fn missed(self, figures: Figures, changes: u32, times: &Times) -> Option<String> {
        let slow = times.percentile(0.99).as_millis();
        // A dead letter is a separate fault, but it also shows the effect.
        let (is_seen, expected) = match self {
            Effect::Spooled(least) => {
                (figures.spooled + figures.dead_letters >= least, format!("at least {least} callbacks in the spool"))
            }
            Effect::Changes(least) => (changes >= least, format!("at least {least} changes of the server")),
            Effect::Slow(least) => (
                figures.spooled > 0 || slow >= least.into(),
                format!("callbacks in the spool, or answers that take {least} ms"),
            ),
        };
        let Figures { spooled, failures, .. } = figures;
        (!is_seen).then(|| {
            format!(
                "the fault had no effect: expected {expected}, seen {spooled} in the spool, {failures} failed publishes, \
                 {changes} changes, p99 {slow} ms"
            )
        })
    }
}

/// Does something once per second, and counts the successes.
async fn again_and_again(lasting: Duration, mut act: impl AsyncFnMut() -> bool) -> u32 {
    let begun = Instant::now();
    let mut ticker = interval(STEP_DOWN_EVERY);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut times = 0;
    while begun.elapsed() < lasting {
        ticker.tick().await;
        times += u32::from(act().await);
    }
    times
}

/// Kills servers. Starts them when the time is over and, if possible, another server has taken over.
async fn killed(side: &Side, name: &str, who: Who, lasting: Duration) -> u32 {
    let places = who.places(side, name).await;
    join_all(places.iter().map(|&place| side.kill(place))).await;
    let begun = Instant::now();
    let mut changes = 0;
    if who.one_may_follow() {
        eventually("another server to take over", SETTLED, async || {
            who.one(side, name).await.filter(|place| !places.contains(place))
        })
        .await;
        changes = 1;
    }
    let_pass(lasting.saturating_sub(begun.elapsed())).await;
    join_all(places.iter().map(|&place| side.start_again(place))).await;
    changes
}

impl Who {
    /// Whether enough servers are left for an election.
    fn one_may_follow(self) -> bool {
        !matches!(self, Who::Two | Who::All)
    }
}

/// Stops and starts all servers one after the other, like an upgrade: the next one when all copies have caught up.
async fn rolling(side: &Side, name: &str) -> u32 {
    let mut changes = 0;
    for place in 0..SERVERS {
        let before = side.leader(name).await;
        side.shut_down(place).await;
        side.start_again(place).await;
        side.settled(name).await;
        changes += u32::from(side.leader(name).await != before);
    }
    changes
}
