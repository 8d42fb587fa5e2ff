//! What `doctor` checks about an address to listen on.

use std::io::ErrorKind;
use std::net::SocketAddr;

use futures_util::future::join_all;

use super::bind;
use crate::common::address::reachable;
use crate::common::findings::Findings;

/// Whether the addresses of a key are free, used by a bridge that is running, or used by another program. `is_bridge` asks
/// what answers at `host:port`; none if that cannot be known. True if a bridge listens, or may.
pub async fn examine<F: Future<Output = Option<bool>>>(
    key: &str,
    addresses: &[SocketAddr],
    findings: &Findings,
    is_bridge: impl Fn(String) -> F,
) -> bool {
    let shown = addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", ");
    let error = match bind(addresses) {
        Ok(_) => {
            findings.ok(key, format!("{shown} is free; no bridge is running on it"));
            return false;
        }
        Err(error) => error,
    };
    if error.kind() != ErrorKind::AddrInUse {
        let remedy = match error.kind() {
            ErrorKind::PermissionDenied => "use a port above 1023, or give the program CAP_NET_BIND_SERVICE".to_owned(),
            ErrorKind::AddrNotAvailable => format!("set `{key}` to an address of this machine, or to 0.0.0.0"),
            _ => format!("fix `{key}`"),
        };
        findings.problem(key, format!("{shown} cannot be bound: {error}"), remedy);
        return false;
    }
    let answers = join_all(addresses.iter().map(|address| is_bridge(reachable(&address.to_string())))).await;
    if answers.contains(&Some(true)) {
        findings.ok(key, format!("a bridge is running on {shown}"));
    } else if answers.contains(&None) {
        findings.not_checked(key, format!("{shown} is in use, by a bridge that is running or by another program"));
    } else {
        let remedy = format!("stop the other program, or set another `{key}`");
        findings.problem(key, format!("{shown} is in use by another program"), remedy);
        return false;
    }
    true
}
