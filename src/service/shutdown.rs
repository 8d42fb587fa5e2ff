//! Stopping as one sequence of phases. A phase is entered once and never left but for a later one; entering one enters
//! all before it, so that a second signal, which goes straight to the last, leaves nobody waiting for what was skipped.

use tokio_util::sync::CancellationToken;

/// What the service still does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Ready for callbacks.
    Ready,
    /// Not ready any more, for load balancers to notice; callbacks are still accepted.
    NotReady,
    /// No more callbacks are accepted; those in flight are finished.
    NotAccepting,
    /// What is still being published goes to the spool.
    CancellingInFlight,
    /// Everything ends.
    Closed,
}

/// Phases that somebody waits for, in their order.
const WAITED_FOR: [Phase; 4] = [Phase::NotReady, Phase::NotAccepting, Phase::CancellingInFlight, Phase::Closed];

/// The phase that the service is in. Those who work until a phase hold its token.
#[derive(Debug, Default)]
pub(super) struct Shutdown {
    tokens: [CancellationToken; WAITED_FOR.len()],
}

impl Shutdown {
    /// Enters a phase, and all before it that were skipped.
    pub(super) fn enter(&self, phase: Phase) {
        for (_, token) in WAITED_FOR.iter().zip(&self.tokens).filter(|(waited_for, _)| **waited_for <= phase) {
            token.cancel();
        }
    }

    /// The present phase.
    pub(super) fn phase(&self) -> Phase {
        let entered = WAITED_FOR.iter().zip(&self.tokens).filter(|(_, token)| token.is_cancelled());
        entered.map(|(phase, _)| *phase).max().unwrap_or(Phase::Ready)
    }

    /// A token that is cancelled when a phase is entered. For [`Phase::Ready`] it is that of the first phase after it.
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
