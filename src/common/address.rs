//! Addresses in the configuration. Nothing is looked up.

use std::net::{IpAddr, SocketAddr};

/// Whether a host is this machine by its name or address. Brackets of an IPv6 address may be there. Names below
/// `localhost` are not: a resolver may lead them anywhere.
pub fn is_loopback(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let is_local = |ip: IpAddr| ip.to_canonical().is_loopback();
    address.parse().map_or_else(|_| host.eq_ignore_ascii_case("localhost"), is_local)
}

/// Whether the port of `host:port` is one, or is missing.
pub fn is_port_valid(authority: &str) -> bool {
    let after_host = authority.rsplit_once(']').map_or(authority, |(_, rest)| rest);
    after_host.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// Host and port of `host:port`, or of `scheme://user@host:port/path`. The port may be missing.
pub fn authority(address: &str) -> &str {
    let address = address.split_once("://").map_or(address, |(_, rest)| rest);
    let end = address.find(['/', '?', '#']).unwrap_or(address.len());
    address[..end].rsplit('@').next().unwrap_or_default()
}

/// The host of `host:port`, or of `scheme://host:port`. The port may be missing.
pub fn host(address: &str) -> &str {
    let authority = authority(address);
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

/// An address to connect to: the local one for a listener on all addresses.
pub fn reachable(listen: &str) -> String {
    match listen.rsplit_once(':') {
        Some(("0.0.0.0" | "", port)) => format!("127.0.0.1:{port}"),
        Some(("[::]", port)) => format!("[::1]:{port}"),
        _ => listen.to_owned(),
    }
}

/// Whether listeners on both addresses exclude each other. Port 0 stands for any free port.
pub fn overlap(one: &SocketAddr, other: &SocketAddr) -> bool {
    let (ip, other_ip) = (one.ip().to_canonical(), other.ip().to_canonical());
    // Linux accepts connections over IPv4 at `[::]` too.
    let includes = |all: IpAddr, ip: IpAddr| all.is_unspecified() && (all.is_ipv6() || ip.is_ipv4() || ip == all);
    one.port() == other.port()
        && one.port() != 0
        && (ip == other_ip || includes(ip, other_ip) || includes(other_ip, ip))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_exclude_each_other_at_the_same_port() {
        let overlap = |one: &str, other: &str| {
            let (one, other) = (one.parse().expect("an address"), other.parse().expect("an address"));
            assert_eq!(super::overlap(&one, &other), super::overlap(&other, &one), "{one} {other}");
            super::overlap(&one, &other)
        };
        for (one, other) in [
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("0.0.0.0:80", "127.0.0.1:80"),
            ("0.0.0.0:80", "0.0.0.0:80"),
            ("[::]:80", "0.0.0.0:80"),
            ("[::]:80", "127.0.0.1:80"),
            ("[::]:80", "[::1]:80"),
            ("[::ffff:127.0.0.1]:80", "127.0.0.1:80"),
        ] {
            assert!(overlap(one, other), "{one} {other}");
        }
        for (one, other) in [
            ("127.0.0.1:80", "127.0.0.1:81"),
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("0.0.0.0:0", "127.0.0.1:0"),
            ("127.0.0.1:80", "127.0.0.2:80"),
            ("0.0.0.0:80", "[::1]:80"),
            ("127.0.0.1:80", "[::1]:80"),
        ] {
            assert!(!overlap(one, other), "{one} {other}");
        }
    }

    #[test]
    fn this_machine_is_known_by_name_and_address() {
        for local in ["127.0.0.1", "127.8.0.1", "[::1]", "::1", "::ffff:127.0.0.1", "localhost", "LOCALHOST"] {
            assert!(is_loopback(local), "{local}");
        }
        for other in ["", "0.0.0.0", "[::]", "10.0.0.1", "kafka", "localhost.example.com", "127.0.0.1.example.com"] {
            assert!(!is_loopback(other), "{other}");
        }
        // The resolver decides where these lead.
        for other in ["a.localhost", "localhost.", "127.0.0.1.", "127.1", "[127.0.0.1", "localhost]"] {
            assert!(!is_loopback(other), "{other}");
        }
    }

    #[test]
    fn a_port_is_a_number_of_16_bits() {
        for valid in ["kafka", "kafka:1", "127.0.0.1:65535", "[::1]", "[::1]:80"] {
            assert!(is_port_valid(valid), "{valid}");
        }
        for invalid in ["kafka:", "kafka:0", "127.0.0.1:65536", "127.0.0.1:99999", "[::1]:99999", "a:b", "a:+-1"] {
            assert!(!is_port_valid(invalid), "{invalid}");
        }
    }

    #[test]
    fn an_address_has_a_host() {
        for (address, expected) in [
            ("kafka-1:9092", "kafka-1"),
            ("kafka-1", "kafka-1"),
            ("SASL_SSL://kafka-1:9092", "kafka-1"),
            ("[::1]:8080", "[::1]"),
            ("https://media.example.com/callbacks?a=b:1", "media.example.com"),
            ("http://127.0.0.1:8080/", "127.0.0.1"),
        ] {
            assert_eq!(host(address), expected);
        }
        for (address, expected) in [
            ("kafka-1:9092", "kafka-1:9092"),
            ("SASL_SSL://kafka-1:9092", "kafka-1:9092"),
            ("tls://me:pa@ss@[::1]:4222/path?query#fragment", "[::1]:4222"),
        ] {
            assert_eq!(authority(address), expected);
        }
    }
}
