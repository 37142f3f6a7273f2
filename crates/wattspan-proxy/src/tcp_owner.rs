//! The user of a TCP client on this machine, by the kernel's socket diagnostics (sock_diag(7), `inet_diag.h`).
//!
//! One query per connection: its cost does not depend on the number of sockets, as that of /proc/net/tcp does.
//! Invariant: a uid is returned only for a socket that is ESTABLISHED, has exactly these addresses, and belongs to a
//! process (has an inode). The kernel reports uid 0 for sockets without a process: TIME_WAIT, closed, not yet accepted.
//! A query covers the network namespace of the proxy; each namespace has its own loopback.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

/// Whether the user of a TCP connection can be looked up on this system.
pub const IS_SUPPORTED: bool = true;

// linux/sock_diag.h, linux/netlink.h, net/tcp_states.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const TCP_ESTABLISHED: u8 = 1;
const IPPROTO_TCP: u8 = 6;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

const HEADER_BYTES: usize = 16;
const REQUEST_BYTES: usize = HEADER_BYTES + 56;

/// The user that owns the client's socket; `None` where that is unknown: the client is not on loopback, or its socket
/// is in another state, in another network namespace, or of a user without an id in this user namespace.
///
/// # Errors
/// The query fails: the kernel was built without `INET_DIAG`, or a seccomp filter denies it.
pub fn uid(client: SocketAddr, local: SocketAddr) -> io::Result<Option<u32>> {
    let (client, local) = (canonical(client), canonical(local));
    if !client.ip().is_loopback() || !local.ip().is_loopback() || client.is_ipv4() != local.is_ipv4() {
        return Ok(None);
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let diag = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::SOCK_DIAG))?;
    send(&diag, &encode_request(client, local), SendFlags::empty())?;
    // The kernel queues its reply before `send` returns.
    let mut reply = [0_u8; 1024];
    let (length, _) = recv(&diag, &mut reply, RecvFlags::empty())?;
    parse_reply(reply.get(..length).unwrap_or_default(), client, local)
}

/// Converts an IPv4-mapped IPv6 address to IPv4.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// `nlmsghdr`, then `inet_diag_req_v2` with the client's socket as the source.
fn encode_request(client: SocketAddr, local: SocketAddr) -> [u8; REQUEST_BYTES] {
    const NO_COOKIE: [u8; 8] = [0xff; 8];
    const ALL_STATES: u32 = u32::MAX;
    let mut bytes = [0; REQUEST_BYTES];
    let mut at = 0;
    let mut put = |field: &[u8]| {
        bytes[at..at + field.len()].copy_from_slice(field);
        at += field.len();
    };
    put(&(REQUEST_BYTES as u32).to_ne_bytes());
    put(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(&NLM_F_REQUEST.to_ne_bytes());
    put(&[0; 8]);
    put(&[if client.is_ipv4() { AF_INET } else { AF_INET6 }, IPPROTO_TCP, 0, 0]);
    put(&ALL_STATES.to_ne_bytes());
    put(&client.port().to_be_bytes());
    put(&local.port().to_be_bytes());
    put(&address_bytes(client.ip()));
    put(&address_bytes(local.ip()));
    put(&0_u32.to_ne_bytes());
    put(&NO_COOKIE);
    bytes
}

fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&address.octets());
            bytes
        }
        IpAddr::V6(address) => address.octets(),
    }
}

/// Reads `inet_diag_msg`, or an error message.
fn parse_reply(reply: &[u8], client: SocketAddr, local: SocketAddr) -> io::Result<Option<u32>> {
    let short =
        || io::Error::new(io::ErrorKind::InvalidData, "the kernel's reply about a socket is too short");
    let (header, message) = reply.split_at_checked(HEADER_BYTES).ok_or_else(short)?;
    let kind = u16::from_ne_bytes([header[4], header[5]]);
    if kind == NLMSG_ERROR {
        let code = message.first_chunk().map(|code| i32::from_ne_bytes(*code)).ok_or_else(short)?;
        let errno = Errno::from_raw_os_error(code.wrapping_neg());
        return if errno == Errno::NOENT { Ok(None) } else { Err(errno.into()) };
    }
    if kind != SOCK_DIAG_BY_FAMILY {
        return Ok(None);
    }
    let message: &[u8; 72] = message.first_chunk().ok_or_else(short)?;
    let word =
        |at: usize| u32::from_ne_bytes([message[at], message[at + 1], message[at + 2], message[at + 3]]);
    let address = |port: usize, ip: usize| {
        let bytes: [u8; 16] = std::array::from_fn(|byte| message[ip + byte]);
        let ip = match message[0] {
            AF_INET => IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]]),
            _ => IpAddr::from(Ipv6Addr::from(bytes)),
        };
        canonical(SocketAddr::new(ip, u16::from_be_bytes([message[port], message[port + 1]])))
    };
    let (state, uid, inode) = (message[1], word(64), word(68));
    let is_this = address(4, 8) == client && address(6, 24) == local;
    let is_held = state == TCP_ESTABLISHED && inode != 0;
    Ok((is_this && is_held).then_some(uid).filter(|uid| *uid != wattspan_system::unix_socket::OVERFLOW_UID))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{Shutdown, TcpListener, TcpStream};

    use super::*;

    fn pair(listen: &str, connect: IpAddr) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind(listen).unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect((connect, port)).unwrap();
        (client, listener.accept().unwrap().0)
    }

    fn owner_of(accepted: &TcpStream) -> Option<u32> {
        uid(accepted.peer_addr().unwrap(), accepted.local_addr().unwrap()).unwrap()
    }

    #[test]
    fn a_loopback_client_has_this_uid_over_ipv4_and_ipv6() {
        let own = Some(rustix::process::geteuid().as_raw());
        let (v4, v6) = ("127.0.0.1".parse().unwrap(), "::1".parse().unwrap());
        for (listen, connect) in [
            ("127.0.0.1:0", v4),
            ("127.0.0.1:0", "::ffff:127.0.0.1".parse().unwrap()),
            ("[::1]:0", v6),
            ("[::]:0", v4),
            ("[::]:0", v6),
        ] {
            let (_client, accepted) = pair(listen, connect);
            assert_eq!(owner_of(&accepted), own, "{connect} to {listen}");
        }
    }

    #[test]
    fn a_closed_or_half_closed_client_has_no_owner() {
        let (client, mut accepted) = pair("127.0.0.1:0", "127.0.0.1".parse().unwrap());
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(accepted.read(&mut [0]).unwrap(), 0);
        assert_eq!(owner_of(&accepted), None, "FIN_WAIT");
        drop(client);
        assert_eq!(owner_of(&accepted), None, "orphaned");
        let (client_address, local) = (accepted.peer_addr().unwrap(), accepted.local_addr().unwrap());
        drop(accepted);
        assert_eq!(uid(client_address, local).unwrap(), None, "TIME_WAIT");
    }

    #[test]
    fn a_listener_on_the_same_port_is_not_the_client() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let local = listener.local_addr().unwrap();
        let gone = SocketAddr::from(([127, 0, 0, 1], 1));
        // The kernel falls back to a listener where no connection matches.
        assert_eq!(uid(local, gone).unwrap(), None);
        assert_eq!(uid(gone, local).unwrap(), None);
    }

    #[test]
    fn an_unaccepted_connection_has_no_owner() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(uid(listener.local_addr().unwrap(), client.local_addr().unwrap()).unwrap(), None);
    }

    #[test]
    fn non_loopback_addresses_are_not_looked_up() {
        let outside = SocketAddr::from(([192, 0, 2, 1], 80));
        assert_eq!(uid(outside, outside).unwrap(), None);
        assert_eq!(uid(outside, SocketAddr::from(([127, 0, 0, 1], 80))).unwrap(), None);
    }
}
