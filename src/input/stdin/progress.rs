//! Which lines have an outcome, and what is said about that in the end.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::bridge::{Kept, Outcome};

/// The lines so far.
#[derive(Debug, Default)]
pub(super) struct Progress(Mutex<Counts>);

/// Numbers of lines.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    /// The number of the last line that was received.
    last: u64,
    /// The numbers of those that have no outcome.
    unfinished: BTreeSet<u64>,
    /// Lines that were received. Blank ones are not among them.
    pub(super) lines: u64,
    /// Outcomes, in the order of [`Outcome::LABELS`].
    outcomes: [u64; Outcome::LABELS.len()],
    /// Lines that are not callbacks.
    bad: u64,
    /// The number of the first of them.
    first_bad: u64,
    /// Those of them that are not kept as dead letters.
    not_kept: u64,
}

impl Progress {
    /// A line was received.
    pub(super) fn received(&self, number: u64) {
        let mut counts = self.counts();
        counts.last = number;
        counts.lines += 1;
        counts.unfinished.insert(number);
    }

    /// A line has an outcome.
    pub(super) fn ended(&self, number: u64, outcome: &Outcome) {
        let mut counts = self.counts();
        counts.unfinished.remove(&number);
        let label = outcome.label();
        for (count, _) in counts.outcomes.iter_mut().zip(Outcome::LABELS).filter(|(_, known)| **known == label) {
            *count += 1;
        }
        if let Outcome::NotACallback { kept, .. } = outcome {
            counts.first_bad = if counts.bad == 0 { number } else { counts.first_bad.min(number) };
            counts.bad += 1;
            counts.not_kept += u64::from(*kept != Kept::Yes);
        }
    }

    /// The numbers now.
    pub(super) fn now(&self) -> Counts {
        self.counts().clone()
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    /// How many lines have an outcome, by its label.
    pub(super) fn of(&self, label: &str) -> u64 {
        self.outcomes.iter().zip(Outcome::LABELS).filter(|(_, known)| **known == label).map(|(count, _)| count).sum()
    }

    /// What a person must know. `stopped` says why there may be more lines than were received.
    ///
    /// # Errors
    /// That lines are not callbacks, or have no outcome, or were not read.
    pub(super) fn result(&self, stopped: Option<&str>) -> Result<(), String> {
        let mut problems = Vec::new();
        let is_unfinished = stopped.is_some() || !self.unfinished.is_empty();
        if is_unfinished {
            let stopped = stopped.unwrap_or("stopped");
            let next = self.unfinished.first().copied().unwrap_or(self.last + 1);
            problems.push(format!(
                "{stopped}: continue with line {next} (`tail -n +{next}`); every line before it is done, and some after \
                 it can be done too"
            ));
        }
        if self.bad > 0 {
            let not_kept = match self.not_kept {
                0 => "all are kept as dead letters".to_owned(),
                not_kept => format!("{not_kept} of them are not kept as dead letters"),
            };
            let (bad, lines, first) = (self.bad, self.lines, self.first_bad);
            problems.push(format!("{bad} of {lines} lines are not callbacks, the first is line {first}; {not_kept}"));
        }
        if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::NotACallback;

    fn bad(kept: Kept) -> Outcome {
        Outcome::NotACallback { error: NotACallback::NotAnObject("a number"), kept }
    }

    #[test]
    fn the_first_line_without_an_outcome_is_where_to_continue() {
        let progress = Progress::default();
        assert_eq!(progress.now().result(None), Ok(()));
        let told = |stopped| progress.now().result(stopped).expect_err("not all is done");
        assert!(told(Some("stopped")).starts_with("stopped: continue with line 1 (`tail -n +1`); "));
        for number in [1, 3, 7] {
            progress.received(number);
        }
        progress.ended(1, &Outcome::Published);
        progress.ended(7, &Outcome::Spooled);
        assert!(told(Some("stopped")).contains("line 3 "), "{}", told(Some("stopped")));
        assert!(told(None).contains("line 3 "), "{}", told(None));
        progress.ended(3, &Outcome::Published);
        assert_eq!(progress.now().result(None), Ok(()));
        assert!(told(Some("stopped")).contains("line 8 "));
        let counts = progress.now();
        assert_eq!((counts.lines, counts.of("published"), counts.of("spooled"), counts.of("refused")), (3, 2, 1, 0));
    }

    #[test]
    fn lines_that_are_not_callbacks_are_counted() {
        let progress = Progress::default();
        for (number, outcome) in [(2, bad(Kept::Yes)), (1, bad(Kept::Yes)), (3, Outcome::Published)] {
            progress.received(number);
            progress.ended(number, &outcome);
        }
        let told = progress.now().result(None).expect_err("bad lines");
        assert_eq!(told, "2 of 3 lines are not callbacks, the first is line 1; all are kept as dead letters");
        progress.received(4);
        progress.ended(4, &bad(Kept::No));
        let told = progress.now().result(None).expect_err("bad lines");
        assert!(told.ends_with("the first is line 1; 1 of them are not kept as dead letters"), "{told}");
    }
}
