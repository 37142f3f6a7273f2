//! The clients of the proxy that may see energy: its own user, root and a group's members, over connections whose owner
//! is known. No other client receives a figure.
//!
//! The clients run as other users (`setpriv`), so these tests need root.

use crate::other_user;
use crate::programs;
use crate::support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use crate::fixture::LONG_PATIENCE;
use crate::http_stub::{StubServer, TestProxy};
use crate::other_user::TestUser;
use crate::support::{STEADY_MACHINE, TEST_TIMEOUT, TestDaemon};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;

const ROOT: TestUser = TestUser { uid: 0, groups: "" };
const STRANGER: TestUser = TestUser { uid: 12_345, groups: "" };
/// Its primary group in the group database is `daemon`.
const DAEMON: TestUser = TestUser { uid: 1, groups: "" };
/// Its processes have that group, but the group database does not list the user.
const IN_GROUP: TestUser = TestUser { uid: 12_346, groups: "daemon" };

const PATHS: [&str; 3] = ["/v1/completions", "/v1/chat/completions", "/api/generate"];
const WHOLE: &str = r#"{"model":"m","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}"#;
const EVENTS: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\n\
                      data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\n\
                      data: [DONE]\n\n";
const LINES: &str = "{\"model\":\"m\",\"response\":\"x\",\"done\":false}\n\
                     {\"model\":\"m\",\"response\":\"\",\"done\":true,\"prompt_eval_count\":3,\"eval_count\":2}\n";

/// Strings that occur only where figures are.
const FIGURES: [&str; 5] = ["_uj", "wattspan-energy", ": wattspan", "\"energy\"", "grade"];

/// A server that answers each of the three paths in its own format.
fn server() -> StubServer {
    StubServer::new(|mut connection| {
        while let Some(request) = connection.read_request() {
            let path = request.line.split(' ').nth(1).unwrap().to_owned();
            let (media, body) = match path.as_str() {
                "/v1/completions" => ("application/json", WHOLE),
                "/v1/chat/completions" => ("text/event-stream", EVENTS),
                _ => ("application/x-ndjson", LINES),
            };
            let framed = match media {
                "application/json" => format!("Content-Length: {}\r\n\r\n{body}", body.len()),
                _ => format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len()),
            };
            connection.send(format!("HTTP/1.1 200 OK\r\nContent-Type: {media}\r\n{framed}").as_bytes());
        }
    })
}

struct Setup {
    daemon: TestDaemon,
    server: StubServer,
}

impl Setup {
    fn new() -> Option<Self> {
        other_user::is_supported()
            .then(|| Setup { daemon: TestDaemon::start(STEADY_MACHINE), server: server() })
    }

    fn proxy(&self, flags: &[&str]) -> TestProxy {
        self.proxy_by(Command::new(programs::wattspan()), flags)
    }

    fn proxy_by(&self, command: Command, flags: &[&str]) -> TestProxy {
        let flags = [&["--annotate", "usage"], &LONG_PATIENCE[..], flags].concat();
        let upstream = format!("http://{}", self.server.address);
        TestProxy::start_command(command, &upstream, &self.daemon.socket(), &flags).wait_for_daemon()
    }

    /// Everything that a process of this user receives from the proxy at this address, in each version of HTTP.
    fn received(&self, user: TestUser, at: &str) -> Vec<String> {
        let mut command =
            other_user::command_as(module_path!(), self.daemon.socket().parent().unwrap(), user);
        let output = command.env("PROXY", at).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        let received: Vec<String> = text
            .lines()
            .filter_map(|line| serde_json::from_str(line.split_once("RECEIVED ")?.1).ok())
            .collect();
        assert_eq!(received.len(), 2 * PATHS.len(), "{text}");
        received
    }

    fn assert_sees(&self, user: TestUser, at: &str) {
        for (number, received) in self.received(user, at).iter().enumerate() {
            assert!(received.contains("share_uj"), "{user:?} at {at}, {number}: {received}");
            assert!(received.contains("state=settled"), "header or trailer, {number}: {received}");
            assert!(received.contains("\"energy\":{"), "usage, {number}: {received}");
            assert_eq!(received.contains(": wattspan {"), received.contains("[DONE]"), "comment: {received}");
        }
    }

    fn assert_sees_none(&self, user: TestUser, at: &str) {
        for received in self.received(user, at) {
            for word in FIGURES {
                assert!(!received.to_lowercase().contains(word), "{user:?} at {at}: {word} in {received}");
            }
            let bodies = [WHOLE, EVENTS, LINES];
            assert!(bodies.iter().any(|body| received.contains(body)), "as the server sent it: {received}");
            assert!(received.contains("wattspan-span"), "the name reveals nothing: {received}");
        }
    }
}

#[test]
#[ignore = "a helper that other tests start in a process of another user"]
fn a_client_of_another_user() {
    let at = std::env::var("PROXY").unwrap();
    for path in PATHS {
        println!("RECEIVED {}", json!(over_http1(&at, path)));
    }
    for path in PATHS {
        println!("RECEIVED {}", json!(over_http2(&at, path)));
    }
}

fn over_http1(at: &str, path: &str) -> String {
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: test\r\nTE: trailers\r\nConnection: close, TE\r\nContent-Length: 2\r\n\r\n{{}}"
    );
    let mut received = Vec::new();
    match at.strip_prefix("unix:") {
        Some(path) => {
            let mut stream = UnixStream::connect(path).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            stream.read_to_end(&mut received).unwrap();
        }
        None => {
            let mut stream = TcpStream::connect(at.strip_prefix("http://").unwrap()).unwrap();
            stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            stream.read_to_end(&mut received).unwrap();
        }
    }
    // The body without its chunk sizes.
    let text = String::from_utf8(received).unwrap();
    let is_size = |line: &&str| usize::from_str_radix(line.trim(), 16).is_ok();
    text.split_inclusive("\r\n").filter(|line| !is_size(line)).collect::<String>().replace("\n\r\n", "\n")
}

fn over_http2(at: &str, path: &str) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        match at.strip_prefix("unix:") {
            Some(socket) => exchange(tokio::net::UnixStream::connect(socket).await.unwrap(), path).await,
            None => {
                let address = at.strip_prefix("http://").unwrap();
                exchange(tokio::net::TcpStream::connect(address).await.unwrap(), path).await
            }
        }
    })
}

async fn exchange<S>(stream: S, path: &str) -> String
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request =
        Request::post(format!("http://test{path}")).body(Full::new(Bytes::from_static(b"{}"))).unwrap();
    let (head, body) = sender.send_request(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap();
    let trailers = body.trailers().cloned();
    format!("{:?}\n{}{trailers:?}", head.headers, String::from_utf8_lossy(&body.to_bytes()))
}

#[test]
fn on_loopback_another_user_sees_no_figure_and_the_owner_and_root_do() {
    let Some(setup) = Setup::new() else { return };
    for listen in ["127.0.0.1:0", "[::1]:0"] {
        let proxy = setup.proxy(&["--listen", listen]);
        setup.assert_sees(ROOT, &proxy.at);
        setup.assert_sees_none(STRANGER, &proxy.at);
        assert!(
            proxy.log().contains("energy annotations: only in replies to clients of root"),
            "{}",
            proxy.log()
        );
        let counters = proxy.stop();
        counters.assert_balanced();
        assert_eq!(counters.closed, 4 * PATHS.len() as u64, "requests without figures are measured too");
    }
    // IPv4 clients of an IPv6 listener have mapped addresses.
    let proxy = setup.proxy(&["--listen", "[::]:0"]);
    let mapped = format!("http://127.0.0.1:{}", proxy.address.port());
    setup.assert_sees(ROOT, &mapped);
    setup.assert_sees_none(STRANGER, &mapped);
}

#[test]
fn the_user_of_an_unprivileged_proxy_sees_its_figures_and_root_does() {
    let Some(setup) = Setup::new() else { return };
    let owner = TestUser { uid: 12_306, groups: "" };
    let daemon = TestDaemon::start_with_config(STEADY_MACHINE, other_user::GROUPS);
    let upstream = format!("http://{}", setup.server.address);
    let flags = [["--annotate", "usage"], LONG_PATIENCE].concat();
    let proxy = TestProxy::start_as_user_with_flags(12_306, "daemon", &upstream, &daemon.socket(), &flags)
        .wait_for_daemon();
    setup.assert_sees(owner, &proxy.at);
    setup.assert_sees(ROOT, &proxy.at);
    setup.assert_sees_none(STRANGER, &proxy.at);
    assert!(proxy.log().contains("clients of user 12306, of root"), "{}", proxy.log());
}

#[test]
fn on_loopback_a_member_is_one_by_the_group_database() {
    let Some(setup) = Setup::new() else { return };
    let proxy = setup.proxy(&["--annotate-group", "daemon"]);
    setup.assert_sees(DAEMON, &proxy.at);
    setup.assert_sees_none(STRANGER, &proxy.at);
    setup.assert_sees_none(IN_GROUP, &proxy.at);
    let other = setup.proxy(&["--annotate-group", "games"]);
    setup.assert_sees_none(DAEMON, &other.at);
}

#[test]
fn a_supplementary_member_by_the_group_database_sees_figures() {
    let Some(setup) = Setup::new() else { return };
    let groups = setup.daemon.socket().with_file_name("group");
    let known = std::fs::read_to_string("/etc/group").unwrap();
    std::fs::write(&groups, format!("{known}\nmeter-readers:x:54321:games,daemon\n")).unwrap();
    // A mount namespace of its own, in which that file is the group database.
    let mut command = Command::new("unshare");
    let script = "mount --bind \"$0\" /etc/group && exec \"$@\"";
    command.args(["--mount", "sh", "-c", script]).arg(&groups).arg(programs::wattspan());
    let proxy = setup.proxy_by(command, &["--annotate-group", "meter-readers"]);
    setup.assert_sees(DAEMON, &proxy.at);
    setup.assert_sees_none(STRANGER, &proxy.at);
}

#[test]
fn on_a_unix_socket_the_kernels_credentials_decide() {
    let Some(setup) = Setup::new() else { return };
    let path = setup.daemon.socket().with_file_name("proxy.sock");
    let listen = format!("unix:{}", path.display());
    let mode = |path: &Path| {
        let found = std::fs::metadata(path).unwrap();
        std::os::unix::fs::PermissionsExt::mode(&found.permissions()) & 0o777
    };
    let proxy = setup.proxy(&["--listen", &listen]);
    assert_eq!((proxy.at.as_str(), mode(&path)), (listen.as_str(), 0o600));
    setup.assert_sees(ROOT, &listen);
    drop(proxy);
    let flags = ["--listen", &listen, "--listen-group", "games", "--annotate-group", "daemon"];
    let proxy = setup.proxy(&flags);
    assert_eq!(mode(&path), 0o660);
    setup.assert_sees(TestUser { uid: 12_346, groups: "games,daemon" }, &listen);
    setup.assert_sees_none(TestUser { uid: 12_345, groups: "games" }, &listen);
    proxy.stop().assert_balanced();
    assert!(!path.exists(), "the socket goes with the proxy");
}

#[test]
fn a_client_whose_owner_is_unknown_sees_none_even_if_it_is_root() {
    let Some(setup) = Setup::new() else { return };
    let Some(address) = address_beyond_loopback() else {
        support::skip::skip("an address beyond loopback", "connect it to a network");
        return;
    };
    let proxy = setup.proxy(&["--listen", "0.0.0.0:0"]);
    setup.assert_sees_none(ROOT, &format!("http://{address}:{}", proxy.address.port()));
    setup.assert_sees(ROOT, &format!("http://127.0.0.1:{}", proxy.address.port()));
}

/// Sends no packet: connecting a UDP socket selects a route and with it this machine's address.
fn address_beyond_loopback() -> Option<std::net::IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect(SocketAddr::from(([203, 0, 113, 1], 9))).ok()?;
    socket
        .local_addr()
        .ok()
        .map(|address| address.ip())
        .filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
}

#[test]
fn with_annotate_all_every_client_sees_figures_and_start_up_says_so() {
    let Some(setup) = Setup::new() else { return };
    let proxy = setup.proxy(&["--annotate-all"]);
    setup.assert_sees(STRANGER, &proxy.at);
    assert!(proxy.log().contains("replies to every client have energy annotations"), "{}", proxy.log());
}

#[test]
fn a_group_that_does_not_exist_is_refused_where_it_was_asked_for() {
    let run = |listen: &str, flags: &[&str]| {
        let output = Command::new(programs::wattspan())
            .args(["proxy", "--upstream", "http://127.0.0.1:1", "--listen", listen])
            .args(flags)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for (listen, flag) in
        [("127.0.0.1:0", "--annotate-group"), ("unix:/nonexistent/p.sock", "--listen-group")]
    {
        let (status, message) = run(listen, &[flag, "no-such-group"]);
        assert_eq!(status, Some(2));
        assert!(message.contains("no-such-group: no such group"), "{message}");
    }
}
