//! What an examination found, check by check, with remedies: for `doctor`.

use std::sync::{Mutex, PoisonError};

use super::words::words;

words! {
    /// How a check ended.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub enum Verdict {
        /// As it should be.
        Ok = "ok",
        /// It works, but not as well or as safely as it could.
        Warning = "warning",
        /// It does not work.
        Problem = "problem",
        /// It cannot be known, or not without a change.
        NotChecked = "not_checked",
    }
}

/// The end of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was checked, in a word or two.
    pub check: String,
    /// How it ended.
    pub verdict: Verdict,
    /// What was seen, a sentence without secrets.
    pub seen: String,
    /// What a person can do about it; empty if there is nothing to do.
    pub remedy: String,
}

/// Collects findings. An examination that is cancelled leaves those that it had.
#[derive(Debug, Default)]
pub struct Findings {
    found: Mutex<Vec<Finding>>,
    clocks: Mutex<Vec<(String, time::Duration)>>,
}

impl Findings {
    /// Adds a finding.
    pub fn add(&self, verdict: Verdict, check: &str, seen: impl Into<String>, remedy: impl Into<String>) {
        let finding = Finding { check: check.to_owned(), verdict, seen: seen.into(), remedy: remedy.into() };
        self.found.lock().unwrap_or_else(PoisonError::into_inner).push(finding);
    }

    /// Something is as it should be.
    pub fn ok(&self, check: &str, seen: impl Into<String>) {
        self.add(Verdict::Ok, check, seen, "");
    }

    /// Something works, but not as well or as safely as it could.
    pub fn warning(&self, check: &str, seen: impl Into<String>, remedy: impl Into<String>) {
        self.add(Verdict::Warning, check, seen, remedy);
    }

    /// Something does not work.
    pub fn problem(&self, check: &str, seen: impl Into<String>, remedy: impl Into<String>) {
        self.add(Verdict::Problem, check, seen, remedy);
    }

    /// Something cannot be known, and why.
    pub fn not_checked(&self, check: &str, why: impl Into<String>) {
        self.add(Verdict::NotChecked, check, why, "");
    }

    /// Notes how far the clock of a server is ahead of the clock of this machine.
    pub fn clock(&self, server: &str, ahead: time::Duration) {
        self.clocks.lock().unwrap_or_else(PoisonError::into_inner).push((server.to_owned(), ahead));
    }

    /// The findings so far.
    pub fn found(&self) -> Vec<Finding> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The clocks that were seen so far.
    pub fn clocks(&self) -> Vec<(String, time::Duration)> {
        self.clocks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
