//! A load: many callbacks, at a rate or as fast as the answers come.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use tokio::time::Instant;

use super::latency::Latencies;
use super::target::Answer;
use crate::cli::terminal::table;
use crate::common::visible;
use crate::event::cut;

/// How often the progress is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(200);

/// Characters of the bar.
const BAR: usize = 24;

/// Most bytes of an answer in the report.
const SHOWN: usize = 160;

/// What to post.
#[derive(Debug)]
pub(super) struct Load {
    /// How many callbacks; none until Ctrl-C.
    pub(super) count: Option<u64>,
    /// How many per second; none as fast as the answers come.
    pub(super) rate: Option<f64>,
    /// How many wait for their answers at the same time.
    pub(super) concurrency: usize,
    /// Whether a callback can have several tries.
    pub(super) retries: bool,
}

/// What came of a load.
#[derive(Debug)]
pub(super) struct Totals {
    took: Duration,
    posted: u64,
    accepted: u64,
    /// Those that were under way at the end.
    unanswered: u64,
    /// Whether Ctrl-C ended it.
    is_interrupted: bool,
    /// How many tries had an answer, if a callback can have several.
    tries: Option<u64>,
    /// The answers of all tries by label: how many, and the first answer if it is not a success.
    answers: BTreeMap<String, (u64, Option<String>)>,
    latencies: Latencies,
}

impl Load {
    /// Posts callbacks by their number, from 0 on, until all are answered, or until Ctrl-C: then what is not answered yet
    /// is not waited for. `post` reports the answer to each try with its number, from 1 on, and returns whether the callback
    /// was accepted.
    pub(super) async fn run(&self, post: impl AsyncFn(u64, &dyn Fn(u32, &Answer)) -> bool) -> Totals {
        let totals = Totals {
            took: Duration::ZERO,
            posted: 0,
            accepted: 0,
            unanswered: 0,
            is_interrupted: false,
            tries: self.retries.then_some(0),
            answers: BTreeMap::new(),
            latencies: Latencies::default(),
        };
        let (totals, next, start) = (RefCell::new(totals), Cell::new(0), Instant::now());
        let worker = async || {
            loop {
                let number = next.get();
                if self.count.is_some_and(|count| number >= count) {
                    return;
                }
                next.set(number + 1);
                let mut due = Instant::now();
                if let Some(rate) = self.rate {
                    // A callback that is late because no worker was free waits already.
                    due = start + Duration::from_secs_f64(number as f64 / rate);
                    tokio::time::sleep_until(due).await;
                }
                let late = due.elapsed();
                let report = |number: u32, answer: &Answer| {
                    // Only the first try was due at a moment. The pauses between tries are no latency.
                    let late = if number == 1 { late } else { Duration::ZERO };
                    totals.borrow_mut().answered(answer, late + answer.took);
                };
                totals.borrow_mut().unanswered += 1;
                let is_accepted = post(number, &report).await;
                totals.borrow_mut().ended(is_accepted);
            }
        };
        let most = self.count.map_or(usize::MAX, |count| usize::try_from(count).unwrap_or(usize::MAX));
        let workers = futures_util::future::join_all((0..self.concurrency.min(most)).map(|_| worker()));
        let is_interrupted = tokio::select! {
            _ = workers => false,
            () = self.draw(&totals, start) => false,
            _ = tokio::signal::ctrl_c() => true,
        };
        let mut totals = totals.into_inner();
        totals.took = start.elapsed();
        totals.is_interrupted = is_interrupted;
        totals
    }

    /// Draws the progress, forever, if a person looks.
    async fn draw(&self, totals: &RefCell<Totals>, start: Instant) {
        let _erased = Erase;
        loop {
            tokio::time::sleep(DRAW_EVERY).await;
            if std::io::stderr().is_terminal() {
                let line = self.progress(&totals.borrow(), start.elapsed());
                let _ = write!(std::io::stderr(), "\r\u{1b}[K{line}");
            }
        }
    }

    fn progress(&self, totals: &Totals, elapsed: Duration) -> String {
        let mut line = String::new();
        if let Some(count) = self.count {
            let part = totals.posted as f64 / count as f64;
            let done = (part * BAR as f64) as usize;
            let _ = write!(line, "[{}{}] {:.0}%  ", "#".repeat(done), ".".repeat(BAR - done), part * 100.0);
        }
        let per_second = totals.posted as f64 / elapsed.as_secs_f64();
        let _ = write!(line, "{} answers, {per_second:.0} per second", totals.posted);
        let refused = totals.posted - totals.accepted;
        if refused > 0 {
            let _ = write!(line, ", {refused} not accepted");
        }
        line
    }
}

/// Erases the progress when it is dropped.
struct Erase;

impl Drop for Erase {
    fn drop(&mut self) {
        if std::io::stderr().is_terminal() {
            let _ = write!(std::io::stderr(), "\r\u{1b}[K");
        }
    }
}

impl Totals {
    fn answered(&mut self, answer: &Answer, latency: Duration) {
        self.tries = self.tries.map(|tries| tries + 1);
        self.latencies.add(latency);
        let (count, _) = self.answers.entry(answer.label.clone()).or_insert_with(|| {
            let words = (!answer.is_success).then(|| answer.words.split_whitespace().collect::<Vec<_>>().join(" "));
            (0, words)
        });
        *count += 1;
    }

    fn ended(&mut self, is_accepted: bool) {
        self.posted += 1;
        self.accepted += u64::from(is_accepted);
        self.unanswered -= 1;
    }

    /// How many callbacks were answered or given up.
    pub(super) fn posted(&self) -> u64 {
        self.posted
    }

    /// How many of them were accepted.
    pub(super) fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Whether Ctrl-C ended the load.
    pub(super) fn is_interrupted(&self) -> bool {
        self.is_interrupted
    }

    /// The report, without the end of its last line.
    pub(super) fn report(&self) -> String {
        let seconds = self.took.as_secs_f64();
        let per_second = self.posted as f64 / seconds;
        let mut report = format!("{} callbacks in {seconds:.1} s, {per_second:.0} per second", self.posted);
        if let Some(tries) = self.tries {
            let _ = write!(report, "\n{} accepted, after {tries} tries", self.accepted);
        }
        report.push_str("\n\n");
        let (counted, latency) = match self.tries {
            Some(_) => ("tries", "latency of a try"),
            None => ("callbacks", "latency"),
        };
        let mut rows = vec![vec!["answer".to_owned(), counted.to_owned(), "the first one".to_owned()]];
        if self.answers.values().all(|(_, first)| first.is_none()) {
            rows[0].pop();
        }
        for (label, (count, first)) in &self.answers {
            let mut row = vec![label.clone(), count.to_string()];
            row.extend(first.as_deref().map(|first| match cut(first, SHOWN) {
                shown if shown.len() < first.len() => format!("{shown}…"),
                shown => shown.to_owned(),
            }));
            rows.push(row);
        }
        if self.unanswered > 0 {
            rows.push(vec!["not answered".to_owned(), self.unanswered.to_string()]);
        }
        report.push_str(&table(&rows));
        if self.answers.is_empty() {
            return report.trim_end().to_owned();
        }
        let millis = |latency: Duration| format!("{:.1} ms", latency.as_secs_f64() * 1000.0);
        let mut heads = vec![latency.to_owned()];
        let mut values = vec![String::new()];
        for percent in [50.0, 90.0, 99.0, 99.9] {
            heads.push(format!("{percent}%"));
            values.push(millis(self.latencies.percentile(percent)));
        }
        heads.push("longest".to_owned());
        values.push(millis(self.latencies.longest()));
        let _ = write!(report, "\n{}", table(&[heads, values]));
        visible::text(report.trim_end()).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reports an answer that comes after a while. Gives whether it is a success.
    async fn answer(report: &dyn Fn(u32, &Answer), number: u32, label: &str, words: &str, took: Duration) -> bool {
        tokio::time::sleep(took).await;
        let is_success = label == "200";
        report(number, &Answer { is_success, label: label.to_owned(), words: words.to_owned(), took });
        is_success
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_kept_and_latency_counts_from_the_moment_that_was_due() {
        let load = Load { count: Some(20), rate: Some(10.0), concurrency: 1, retries: false };
        let totals = load
            .run(async |number, report| {
                // The first answer delays those that become due in the meantime.
                let took = if number == 0 { Duration::from_millis(1_050) } else { Duration::ZERO };
                answer(report, 1, "200", "", took).await
            })
            .await;
        assert_eq!((totals.posted(), totals.accepted()), (20, 20));
        assert_eq!(totals.took.as_millis() / 100, 19);
        assert!(totals.latencies.percentile(75.0) > Duration::from_millis(400), "{totals:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_the_concurrency_are_under_way() {
        let load = Load { count: Some(9), rate: None, concurrency: 3, retries: false };
        let totals = load
            .run(async |number, report| {
                let (label, words) =
                    if number % 3 == 0 { ("503", "answered with 503: {\n \"x\"\u{1b}}") } else { ("200", "") };
                answer(report, 1, label, words, Duration::from_secs(1)).await
            })
            .await;
        assert_eq!((totals.took.as_secs(), totals.posted(), totals.accepted()), (3, 9, 6));
        let report = totals.report();
        for expected in [
            "9 callbacks in 3.0 s, 3 per second\n",
            "\n200     6\n",
            "\n503     3          answered with 503: { \"x\"\\u{1b}}\n",
            "latency",
        ] {
            assert!(report.contains(expected), "{expected:?} is not in\n{report}");
        }
        let half = Load { count: Some(18), ..load }.progress(&totals, Duration::from_secs(3));
        assert_eq!(half, "[############............] 50%  9 answers, 3 per second, 3 not accepted");
    }

    #[tokio::test(start_paused = true)]
    async fn every_try_is_counted_and_pauses_are_no_latency() {
        let load = Load { count: Some(4), rate: None, concurrency: 2, retries: true };
        let totals = load
            .run(async |_, report| {
                for number in 1..3 {
                    answer(report, number, "503", "answered with 503", Duration::from_millis(10)).await;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                answer(report, 3, "200", "", Duration::from_millis(10)).await
            })
            .await;
        let report = totals.report();
        for expected in [
            "4 callbacks in 4.1 s, 1 per second\n4 accepted, after 12 tries\n",
            "\nanswer  tries  the first one\n200     4\n503     8      answered with 503\n",
            "\nlatency of a try  50% ",
        ] {
            assert!(report.contains(expected), "{expected:?} is not in\n{report}");
        }
        assert!(totals.latencies.longest() < Duration::from_millis(20), "{report}");
    }

    #[test]
    fn callbacks_under_way_are_not_answered() {
        let totals = Totals {
            took: Duration::from_secs(1),
            posted: 0,
            accepted: 0,
            unanswered: 3,
            is_interrupted: true,
            tries: None,
            answers: BTreeMap::new(),
            latencies: Latencies::default(),
        };
        assert!(totals.report().ends_with("\nanswer        callbacks\nnot answered  3"), "{}", totals.report());
    }
}
