//! What a bridge takes at the bounds that its configuration sets: memory and file descriptors, compared with what the
//! process may have.

use std::path::Path;

use crate::bridge::Delivery;
use crate::common::descriptors;
use crate::common::units::Size;
use crate::input::CheckedInput;

/// The program, its threads, its outputs, and the caches and the topics of the spool.
const AT_REST: u64 = 64 << 20;

/// Times of its size that a body takes while it is parsed. A test of the parser holds it to less.
const PARSED: u64 = 24;

/// Bodies are parsed on all cores at once. More of them hardly meet bodies that take as much as this.
const CORES: usize = 8;

/// Parts of `delivery.max_in_flight_bytes` that are in memory at the bound, in eighths: everything twice, because the
/// client libraries of the buses hold records too, and the quarter for arriving bodies.
const IN_FLIGHT_EIGHTHS: u64 = 18;

/// An id of the dedupe window.
const ID: u64 = 64;

/// Files with the memory limit of the container that the program runs in, by the versions of Linux's control groups.
const MEMORY_LIMITS: [&str; 2] = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];

/// A limit above this is none.
const NO_LIMIT: u64 = 1 << 60;

/// Bytes of memory that the bridge takes at its bounds. docs/operations.md has the formula.
pub(super) fn memory(inputs: &[CheckedInput], delivery: &Delivery) -> u64 {
    let connections: u64 = inputs.iter().map(|input| input.settings.bounds().memory).sum();
    let max_body = inputs.iter().map(|input| input.settings.bounds().max_body).max().unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from).min(CORES) as u64;
    let parsed = max_body.saturating_mul(PARSED).saturating_mul(cores);
    // A body that is larger than the bound is let in alone.
    let in_flight = delivery.max_in_flight_bytes.max(max_body.saturating_mul(2));
    let in_flight = (in_flight / 8).saturating_mul(IN_FLIGHT_EIGHTHS);
    let ids = if delivery.dedupe.window.is_zero() { 0 } else { delivery.dedupe.max_ids as u64 };
    let parts = [AT_REST, connections, parsed, in_flight, ids.saturating_mul(ID)];
    parts.into_iter().fold(0, u64::saturating_add)
}

fn connections(inputs: &[CheckedInput]) -> usize {
    inputs.iter().map(|input| input.settings.bounds().connections).fold(0, usize::saturating_add)
}

/// How many file descriptors the bridge needs at its bounds.
pub fn descriptors_needed(inputs: &[CheckedInput]) -> usize {
    connections(inputs).saturating_add(descriptors::FOR_OTHERS)
}

/// Warnings about limits of the process that the configuration exceeds, one sentence each.
pub(super) fn warnings(inputs: &[CheckedInput], memory: u64) -> Vec<String> {
    let connections = connections(inputs);
    let limits = (descriptors::highest(), memory_limit());
    exceeded(connections, memory, limits)
}

fn exceeded(connections: usize, memory: u64, (descriptors, memory_limit): (usize, Option<u64>)) -> Vec<String> {
    let mut warnings = Vec::new();
    let needed = connections.saturating_add(descriptors::FOR_OTHERS);
    if connections > 0 && needed > descriptors {
        warnings.push(format!(
            "the inputs can have {connections} connections open and the rest needs up to {} file descriptors, but the \
             hard limit of this process is {descriptors}: raise it to at least {needed} (ulimit -Hn, LimitNOFILE= of \
             systemd) or lower max_connections; until then fewer connections are kept open",
            descriptors::FOR_OTHERS,
        ));
    }
    if let Some(limit) = memory_limit.filter(|limit| memory > *limit) {
        warnings.push(format!(
            "at its bounds the bridge takes about {} of memory, but this container may have {}: raise its limit, or lower \
             max_connections, max_body, delivery.max_in_flight_bytes or dedupe.max_ids; until then it can be killed under load",
            rounded(memory),
            rounded(limit),
        ));
    }
    warnings
}

fn rounded(bytes: u64) -> Size {
    Size(bytes >> 20 << 20)
}

fn memory_limit() -> Option<u64> {
    MEMORY_LIMITS.iter().find_map(|file| read_limit(Path::new(file))).filter(|limit| *limit < NO_LIMIT)
}

fn read_limit(file: &Path) -> Option<u64> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_below_the_bounds_are_reported_with_their_remedy() {
        assert_eq!(exceeded(4_096, 400 << 20, (1 << 20, Some(512 << 20))), Vec::<String>::new());
        assert_eq!(exceeded(0, 400 << 20, (100, None)), Vec::<String>::new());
        let warnings = exceeded(4_096, 400 << 20, (1_024, Some(256 << 20)));
        assert_eq!(warnings.len(), 2);
        assert!(warnings[0].contains("is 1024: raise it to at least 4352"), "{}", warnings[0]);
        assert!(warnings[1].contains("about 400MiB of memory, but this container may have 256MiB"), "{}", warnings[1]);
    }
}
