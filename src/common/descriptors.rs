//! The file descriptors that the process may have open.

use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// More than this is not asked for: no bound needs it.
const ENOUGH: u64 = 1 << 20;

/// Descriptors that everything but the connections of inputs needs: outputs, the spool, the admin listener, files.
pub const FOR_OTHERS: usize = 256;

/// The limit; 0 before it was read.
static LIMIT: AtomicUsize = AtomicUsize::new(0);

/// Raises the soft limit of the process to its hard limit. Many systems begin with 1024, for programs that can't have
/// more. Returns the limit.
pub fn raise() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let wanted = highest() as u64;
    if limit.current.is_some_and(|current| current < wanted) {
        // Where this is refused, the old limit stays.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum });
    }
    LIMIT.store(0, Ordering::Relaxed);
    self::limit()
}

/// The limit that is in force.
pub fn limit() -> usize {
    match LIMIT.load(Ordering::Relaxed) {
        0 => {
            let limit = usize::try_from(getrlimit(Resource::Nofile).current.unwrap_or(ENOUGH)).unwrap_or(usize::MAX);
            LIMIT.store(limit, Ordering::Relaxed);
            limit
        }
        limit => limit,
    }
}

/// The limit that [`raise`] can reach.
pub fn highest() -> usize {
    usize::try_from(getrlimit(Resource::Nofile).maximum.unwrap_or(ENOUGH).min(ENOUGH)).unwrap_or(usize::MAX)
}
