//! How far the clock of a server is from the clock of this machine.

use std::time::Duration;

use hyper::HeaderMap;
use hyper::header::DATE;
use time::OffsetDateTime;

/// A larger difference is reported.
pub const TOLERANCE: Duration = Duration::from_secs(60);

/// With this difference and more, Alibaba refuses requests (its page on common parameters of MNS).
pub const LIMIT: Duration = Duration::from_secs(15 * 60);

/// How far the clock of a server is ahead, by the header `Date` of an answer that has just come. It has whole seconds.
pub fn ahead(headers: &HeaderMap) -> Option<time::Duration> {
    let theirs = httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()?;
    Some(OffsetDateTime::from(theirs) - OffsetDateTime::now_utc())
}
