//! Many clients that connect at the same time, while the proxy's only thread does not run.
//!
//! The proxy process is stopped, so that only the kernel's queue of connections decides how many of them complete.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Resource, Signal, getrlimit, kill_process, setrlimit};

use crate::http_stub::{StubServer, TestProxy};
use crate::support::{STEADY_MACHINE, TEST_TIMEOUT, TestDaemon, skip::skip};

/// Clients that connect at once.
const CLIENTS: usize = 2000;

const REQUEST: &[u8] = b"GET /health HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n";

/// Whether this machine allows so many connections; skips the test otherwise.
fn is_possible() -> bool {
    const OTHER_DESCRIPTORS: u64 = 100;
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let queue = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let has_descriptors = limit.maximum.is_none_or(|most| most >= CLIENTS as u64 + OTHER_DESCRIPTORS);
    let is_possible = has_descriptors && queue.trim().parse::<usize>().unwrap() >= CLIENTS;
    if !is_possible {
        skip("room for 2,000 connections", "raise net.core.somaxconn and ulimit -Hn");
    }
    is_possible
}

/// Connects all clients while the proxy is stopped; afterwards each of them gets a reply.
fn serve_burst<S: Read + Write>(listen: &[&str], connect: impl Fn(&TestProxy) -> S) {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let stub = StubServer::with_reply(&b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"[..]);
    let proxy = TestProxy::start(&format!("http://{}", stub.address), &daemon.socket(), listen);
    let proxy = proxy.wait_for_daemon();
    kill_process(proxy.pid(), Signal::STOP).unwrap();
    let mut clients: Vec<S> = (0..CLIENTS).map(|_| connect(&proxy)).collect();
    kill_process(proxy.pid(), Signal::CONT).unwrap();
    let mut served = 0;
    for client in &mut clients {
        client.write_all(REQUEST).unwrap();
        let mut reply = String::new();
        client.read_to_string(&mut reply).unwrap();
        served += usize::from(reply.starts_with("HTTP/1.1 200 OK\r\n") && reply.ends_with("ok"));
    }
    assert_eq!(served, CLIENTS);
}

#[test]
fn two_thousand_clients_that_connect_at_once_over_tcp_are_all_served() {
    if !is_possible() {
        return;
    }
    serve_burst(&[], |proxy| {
        // A full queue drops the client's first packet, so that the connection does not complete.
        let stream = TcpStream::connect_timeout(&proxy.address, TEST_TIMEOUT).unwrap();
        stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        stream
    });
}

#[test]
fn two_thousand_clients_that_connect_at_once_over_a_unix_socket_are_all_served() {
    if !is_possible() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("proxy.sock");
    let listen = format!("unix:{}", path.display());
    serve_burst(&["--listen", &listen], |_| connect_without_waiting(&path));
}

/// Connects; fails where the queue is full, for which a blocking call would wait.
fn connect_without_waiting(path: &Path) -> UnixStream {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
    connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    stream
}
