//! Addresses to listen at, as people write them.
//!
//! Owns the look-up of a host's name, once, when the command line is read.

use std::net::{SocketAddr, ToSocketAddrs};

/// `127.0.0.1:8088`, `[::1]:8088` or `localhost:8088`. Of a name's addresses it is the first of IPv4, else the first:
/// clients that are given an address are mostly given that one.
///
/// # Errors
/// What would have been understood.
pub fn parse(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (host, port) =
        text.rsplit_once(':').ok_or("give ADDRESS:PORT, as 127.0.0.1:8088 or localhost:8088")?;
    let port: u16 = port.parse().map_err(|_| format!("{port:?} is no port: give a number up to 65535"))?;
    let found =
        (host, port).to_socket_addrs().map_err(|error| format!("cannot look up {host:?}: {error}"))?;
    let found: Vec<SocketAddr> = found.collect();
    let first = found.iter().find(|address| address.is_ipv4()).or(found.first());
    first.copied().ok_or_else(|| format!("{host:?} has no address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_names_are_understood_and_nonsense_is_not() {
        for text in ["127.0.0.1:0", "[::1]:8088", "localhost:8088"] {
            let address = parse(text).unwrap();
            assert!(address.ip().is_loopback(), "{text}: {address}");
        }
        assert_eq!(parse("localhost:8088").unwrap().port(), 8088);
        for text in ["", "8088", "localhost", "localhost:", "localhost:65536", "localhost:http", ":"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
