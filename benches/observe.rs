//! Measures processes and the machine from outside, and reads the settings of a benchmark from the environment. Linux
//! only.

#![allow(dead_code)] // each benchmark that includes this uses its own part of it

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::support::process::Process;

/// Linux counts CPU time in hundredths of a second, on every architecture.
const TICK: Duration = Duration::from_millis(10);

/// A whole number from the environment, if it is set.
pub(crate) fn number(name: &str) -> Option<usize> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}: expected a whole number")))
}

/// Seconds from the environment, if they are set.
pub(crate) fn seconds(name: &str) -> Option<Duration> {
    number(name).map(|seconds| Duration::from_secs(seconds as u64))
}

/// The median.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The CPU time of a process so far, in user and system mode.
pub(crate) fn cpu_time(process: u32) -> Duration {
    cpu_time_of(&Path::new("/proc").join(process.to_string())).map(|(_, time)| time).expect("the process still runs")
}

/// The time that the threads of a process have run on a core so far, in nanoseconds, without threads that have ended.
pub(crate) fn run_time(process: u32) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).expect("the process still runs").flatten();
    let nanoseconds = threads.filter_map(|thread| {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanoseconds.sum())
}

/// The same by thread name. Threads with the same name are added up.
pub(crate) fn thread_times(process: u32) -> BTreeMap<String, Duration> {
    let mut times = BTreeMap::new();
    for thread in std::fs::read_dir(format!("/proc/{process}/task")).expect("the process still runs").flatten() {
        if let Some((name, time)) = cpu_time_of(&thread.path()) {
            *times.entry(name).or_default() += time;
        }
    }
    times
}

/// Name and CPU time of a process or thread, while it exists.
fn cpu_time_of(folder: &Path) -> Option<(String, Duration)> {
    let stat = std::fs::read_to_string(folder.join("stat")).ok()?;
    // The name is in parentheses and may contain spaces. utime and stime are the 14th and 15th of all fields.
    let (start, fields) = stat.rsplit_once(") ")?;
    let (_, name) = start.split_once('(')?;
    let ticks: u32 = fields.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u32>().ok()).sum();
    Some((name.to_owned(), TICK * ticks))
}

/// The idle time of the machine's cores, and the part of it in which they waited for a disk.
pub(crate) fn idle_time() -> (Duration, Duration) {
    let stat = std::fs::read_to_string("/proc/stat").expect("/proc/stat can be read");
    let mut ticks = stat.split_ascii_whitespace().skip(4).map(|field| field.parse::<f64>().expect("a count"));
    let mut next = || TICK.mul_f64(ticks.next().expect("a field"));
    let (idle, waiting) = (next(), next());
    (idle + waiting, waiting)
}

/// The resident memory of a process, in MiB.
pub(crate) fn memory(process: &Process) -> f64 {
    status(process, "VmRSS:")
}

/// The peak resident memory of a process, in MiB.
pub(crate) fn peak_memory(process: &Process) -> f64 {
    status(process, "VmHWM:")
}

fn status(process: &Process, field: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).expect("the process still runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the field exists");
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse().expect("a number of kB");
    kilobytes / 1024.0
}
