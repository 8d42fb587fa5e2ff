//! Stopping is a sequence of phases. A phase is entered once, and only a later one follows it. Entering a phase also
//! enters all phases before it: a second signal goes straight to the last phase, and tasks that wait for a skipped one
//! must not wait forever.

use tokio_util::sync::CancellationToken;

/// What the service still does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Ready for callbacks.
    Ready,
    /// Not ready any more, which load balancers notice. Callbacks are still accepted.
    NotReady,
    /// No more callbacks are accepted; those in flight are finished.
    NotAccepting,
    /// Events that are still being published go to the spool.
    CancellingInFlight,
    /// Everything ends.
    Closed,
}

/// Phases that have a token, in their order.
const WAITED_FOR: [Phase; 4] = [Phase::NotReady, Phase::NotAccepting, Phase::CancellingInFlight, Phase::Closed];

/// The phase that the service is in. A task that works until a phase holds the token of that phase.
#[derive(Debug, Default)]
pub(super) struct Shutdown {
    tokens: [CancellationToken; WAITED_FOR.len()],
}

impl Shutdown {
    /// Enters a phase and all phases before it.
    pub(super) fn enter(&self, phase: Phase) {
        for (_, token) in WAITED_FOR.iter().zip(&self.tokens).filter(|(waited_for, _)| **waited_for <= phase) {
            token.cancel();
        }
    }

    /// The current phase.
    pub(super) fn phase(&self) -> Phase {
        let entered = WAITED_FOR.iter().zip(&self.tokens).filter(|(_, token)| token.is_cancelled());
        entered.map(|(phase, _)| *phase).max().unwrap_or(Phase::Ready)
    }

    /// The token that is cancelled when a phase is entered. For [`Phase::Ready`], it is the token of the next phase.
    pub(super) fn token(&self, phase: Phase) -> CancellationToken {
        let index = WAITED_FOR.iter().position(|waited_for| *waited_for >= phase).unwrap_or(0);
        self.tokens[index].clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_enters_all_before_it_and_is_never_left() {
        let shutdown = Shutdown::default();
        assert_eq!(shutdown.phase(), Phase::Ready);
        shutdown.enter(Phase::NotReady);
        assert_eq!(shutdown.phase(), Phase::NotReady);
        assert!(!shutdown.token(Phase::NotAccepting).is_cancelled());
        shutdown.enter(Phase::Closed);
        for phase in WAITED_FOR {
            assert!(shutdown.token(phase).is_cancelled(), "{phase:?}");
        }
        shutdown.enter(Phase::NotReady);
        assert_eq!(shutdown.phase(), Phase::Closed);
    }
}
