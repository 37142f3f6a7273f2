//! Cost of the proxy: time to the first byte, time to each streamed chunk, a burst of connections, memory per stream.
//!
//! Prints a table of values and targets. Other proxies run beside ours in the same run (`proxy_peers`), and every one of
//! them has the same time between two requests: one that is asked in a loop has warm caches. The stub and the clients run
//! in this process, the proxies and the daemon in others. Run with `cargo bench --bench proxy` on a quiet machine.

#[path = "../tests/support/programs.rs"]
mod programs;
mod proxy_peers;
mod table;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use proxy_peers::ChildGuard;
use table::Table;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wattspan::clock::monotonic_ns;

/// Rounds, in each of which every proxy is measured; the median round counts.
const ROUNDS: usize = 7;

/// Requests per round.
const REQUESTS: usize = 100;

/// Chunks per round.
const CHUNKS: usize = 100;

/// The time between two requests to one proxy, and between two chunks.
const SPACING: Duration = Duration::from_millis(15);

/// Clients that connect at once, and how often.
const CLIENTS: usize = 2000;
const BURST_ROUNDS: usize = 5;

/// Concurrent streams.
const STREAMS: usize = 2000;

const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
const MACHINE: &str =
    "[[domain]]\nname = \"package-0\"\nkind = \"package\"\nprofile = [[1.0, 80]]\nquantum_uj = 61\n";

fn main() {
    proxy_peers::run_bare_if_requested();
    raise_descriptors();
    let directory = tempfile::tempdir().expect("a directory");
    let machine = directory.path().join("machine.toml");
    std::fs::write(&machine, MACHINE).expect("written");
    let socket = directory.path().join("w.sock");
    let daemon = Command::new(env!("CARGO_BIN_EXE_wattspand"))
        .arg("--replay")
        .arg(&machine)
        .arg("--socket")
        .arg(&socket)
        .stderr(Stdio::null())
        .spawn()
        .expect("the daemon starts");
    let _daemon = ChildGuard(daemon);
    let stub = stub();
    let proxy = Proxy::start(stub, &socket, "connected to the daemon");
    let alone = Proxy::start(stub, &directory.path().join("none.sock"), "unmeasured");
    let peers = proxy_peers::start_all(stub, directory.path());
    let mut ways = vec![("direct", stub)];
    ways.extend(peers.iter().map(|peer| (peer.name, peer.address)));
    ways.extend([("proxy without a daemon", alone.address), ("proxy", proxy.address)]);
    let mut table = Table::new("the proxy on loopback (medians, all in one run)");
    latencies(&mut table, "first byte", 1.3, &ways, first_bytes);
    latencies(&mut table, "a chunk", 1.2, &ways, chunk_times);
    bursts(&mut table, &ways);
    streams(&mut table, &proxy);
}

struct Proxy {
    child: ChildGuard,
    address: SocketAddr,
}

impl Proxy {
    /// Starts the proxy and waits until it logs `state`.
    fn start(stub: SocketAddr, socket: &std::path::Path, state: &str) -> Self {
        let mut child = Command::new(programs::wattspan())
            .args(["proxy", "--listen", "127.0.0.1:0", "--upstream", &format!("http://{stub}"), "--socket"])
            .arg(socket)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the proxy starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped"));
        let mut line = String::new();
        lines.read_line(&mut line).expect("its first line");
        let address = line.split("http://").nth(1).and_then(|rest| rest.split(',').next());
        let address = address.and_then(|text| text.parse().ok()).expect("its address");
        while !line.contains(state) {
            line.clear();
            lines.read_line(&mut line).expect("its next line");
        }
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Proxy { child: ChildGuard(child), address }
    }

    fn resident_bytes(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.child.0.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
    }
}

/// A server that answers `/v1/completions?n=N` with a stream of N chunks, [`SPACING`] apart, each with the time of sending.
fn stub() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
    address
}

fn serve(stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    loop {
        let mut count = 0;
        loop {
            line.clear();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if let Some(rest) = line.split("n=").nth(1) {
                count = rest.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0);
            }
            if line == "\r\n" {
                break;
            }
        }
        let stream = reader.get_mut();
        let _ = stream.write_all([HEAD, &chunk()].concat().as_bytes());
        for _ in 0..count {
            std::thread::sleep(SPACING);
            let _ = stream.write_all(chunk().as_bytes());
        }
        let _ = stream.write_all(b"0\r\n\r\n");
    }
}

fn chunk() -> String {
    let text =
        format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"at={:020};\"}}}}]}}\n\n", monotonic_ns());
    format!("{:x}\r\n{text}\r\n", text.len())
}

fn request(count: usize) -> Vec<u8> {
    format!("POST /v1/completions?n={count} HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n").into_bytes()
}

/// Sends a request over a kept-alive connection; calls `each` with the data of every read, up to the end of the reply.
fn ask(stream: &mut TcpStream, count: usize, mut each: impl FnMut(&[u8])) {
    let mut buffer = vec![0; 1 << 16];
    let mut tail = Vec::new();
    stream.write_all(&request(count)).expect("sent");
    loop {
        let length = stream.read(&mut buffer).expect("read");
        assert!(length > 0, "the reply broke off");
        each(&buffer[..length]);
        tail.extend_from_slice(&buffer[..length]);
        if tail.ends_with(b"\r\n0\r\n\r\n") {
            return;
        }
        let from = tail.len().saturating_sub(8);
        tail.drain(..from);
    }
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).expect("connected");
    stream.set_nodelay(true).expect("set");
    stream
}

/// The times to the first byte on one connection to each address, in turn.
fn first_bytes(to: &[SocketAddr]) -> Vec<f64> {
    let mut streams: Vec<TcpStream> = to.iter().copied().map(connect).collect();
    let mut times = vec![Vec::new(); to.len()];
    for _ in 0..REQUESTS {
        for (stream, times) in streams.iter_mut().zip(&mut times) {
            std::thread::sleep(SPACING / to.len() as u32);
            let (began, mut first) = (Instant::now(), None);
            ask(stream, 0, |_| _ = first.get_or_insert_with(|| began.elapsed()));
            times.push(first.expect("a byte came").as_nanos() as f64 / 1e3);
        }
    }
    times.iter_mut().map(|times| median(times).expect("measured")).collect()
}

/// The times from the server to the client of the chunks of one stream from each address.
fn chunk_times(to: &[SocketAddr]) -> Vec<f64> {
    to.iter().copied().map(chunk_time).collect()
}

fn chunk_time(to: SocketAddr) -> f64 {
    let mut stream = connect(to);
    let mut times = Vec::new();
    ask(&mut stream, CHUNKS, |bytes| {
        let now = monotonic_ns();
        for at in memchr::memmem::find_iter(bytes, b"at=") {
            let digits = bytes.get(at + 3..at + 23).and_then(|digits| std::str::from_utf8(digits).ok());
            if let Some(sent) = digits.and_then(|digits| digits.parse::<u64>().ok()) {
                times.push(now.saturating_sub(sent) as f64 / 1e3);
            }
        }
    });
    median(&mut times).expect("measured")
}

/// The latency that each proxy adds to a direct request, and that of ours (the last one) relative to the bare proxy's.
fn latencies(
    table: &mut Table,
    what: &str,
    most: f64,
    ways: &[(&str, SocketAddr)],
    times_us: fn(&[SocketAddr]) -> Vec<f64>,
) {
    let addresses: Vec<SocketAddr> = ways.iter().map(|(_, address)| *address).collect();
    let rounds: Vec<Vec<f64>> = (0..ROUNDS).map(|_| times_us(&addresses)).collect();
    let of = |value: &dyn Fn(&[f64]) -> f64| {
        median(&mut rounds.iter().map(|round| value(round)).collect::<Vec<_>>())
    };
    table.note(&format!("{what}, direct"), of(&|round| round[0]), "us");
    for (way, (name, _)) in ways.iter().enumerate().skip(1) {
        table.note(&format!("{what}, added by {name}"), of(&|round| round[way] - round[0]), "us");
    }
    let (bare, own) = (1, ways.len() - 1);
    let ratio = of(&|round| round[own] / round[bare]);
    table.at_most(&format!("{what}, proxy over bare hyper"), ratio, most, "x");
}

/// The time until each of many clients that connect at once has a reply.
fn bursts(table: &mut Table, ways: &[(&str, SocketAddr)]) {
    let mut rounds = vec![Vec::new(); ways.len()];
    for _ in 0..BURST_ROUNDS {
        for ((_, address), times) in ways.iter().zip(&mut rounds).skip(1) {
            times.push(burst(*address));
        }
    }
    let medians: Vec<Option<f64>> = rounds.iter_mut().map(|times| median(times)).collect();
    for ((name, _), ms) in ways.iter().zip(&medians).skip(1) {
        table.note(&format!("{CLIENTS} clients at once connected, {name}"), *ms, "ms");
    }
    let ratio = medians[ways.len() - 1].zip(medians[1]).map(|(own, bare)| own / bare);
    table.at_most("clients at once, proxy over bare hyper", ratio, 3.0, "x");
}

/// Milliseconds until all clients are connected and one that came last has its reply.
fn burst(to: SocketAddr) -> f64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let began = Instant::now();
        let clients: Vec<_> =
            (0..CLIENTS).map(|_| tokio::spawn(tokio::net::TcpStream::connect(to))).collect();
        let mut streams = Vec::new();
        for client in clients {
            streams.push(client.await.expect("no panic").expect("connected"));
        }
        let last = streams.last_mut().expect("clients");
        last.write_all(&request(0)).await.expect("sent");
        last.read_u8().await.expect("a reply");
        began.elapsed().as_secs_f64() * 1e3
    })
}

/// Many concurrent streams with four chunks per second each, from a stub that waits for all of them.
fn streams(table: &mut Table, warm: &Proxy) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let directory = tempfile::tempdir().expect("a directory");
    let _ = warm;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let stub = listener.local_addr().expect("an address");
        let over = Arc::new(AtomicBool::new(false));
        tokio::spawn(serve_streams(listener, Arc::clone(&over)));
        let machine = directory.path().join("machine.toml");
        std::fs::write(&machine, MACHINE).expect("written");
        let socket = directory.path().join("w.sock");
        let daemon = Command::new(env!("CARGO_BIN_EXE_wattspand"))
            .arg("--replay")
            .arg(&machine)
            .arg("--socket")
            .arg(&socket)
            .stderr(Stdio::null())
            .spawn();
        let _daemon = ChildGuard(daemon.expect("the daemon starts"));
        let proxy =
            tokio::task::spawn_blocking(move || Proxy::start(stub, &socket, "connected to the daemon"))
                .await
                .expect("started");
        let before = proxy.resident_bytes();
        let (begun, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let clients: Vec<_> = (0..STREAMS)
            .map(|_| tokio::spawn(read_stream(proxy.address, Arc::clone(&begun), Arc::clone(&ended))))
            .collect();
        let deadline = Instant::now() + Duration::from_secs(60);
        while begun.load(Ordering::Relaxed) < STREAMS && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        let each = proxy.resident_bytes().saturating_sub(before) as f64 / STREAMS as f64 / 1024.0;
        over.store(true, Ordering::Relaxed);
        for client in clients {
            let _ = client.await;
        }
        table.note("streams at once, begun", Some(begun.load(Ordering::Relaxed) as f64), "");
        let lost = STREAMS - ended.load(Ordering::Relaxed);
        table.at_most("streams at once, not read to their end", Some(lost as f64), 0.0, "");
        table.at_most("memory for a stream", Some(each), 64.0, "KB");
    });
}

async fn serve_streams(listener: tokio::net::TcpListener, over: Arc<AtomicBool>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let over = Arc::clone(&over);
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer).await;
            let _ = stream.write_all(HEAD.as_bytes()).await;
            while !over.load(Ordering::Relaxed) {
                if stream.write_all(chunk().as_bytes()).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
            let _ = stream.write_all(b"0\r\n\r\n").await;
            let _ = stream.read(&mut buffer).await;
        });
    }
}

async fn read_stream(proxy: SocketAddr, begun: Arc<AtomicUsize>, ended: Arc<AtomicUsize>) {
    let Ok(mut stream) = tokio::net::TcpStream::connect(proxy).await else { return };
    let _ = stream.write_all(&request(0)).await;
    let (mut buffer, mut tail, mut any) = (vec![0; 4096], Vec::new(), false);
    while let Ok(length) = stream.read(&mut buffer).await {
        if length == 0 {
            return;
        }
        if !std::mem::replace(&mut any, true) {
            begun.fetch_add(1, Ordering::Relaxed);
        }
        tail.extend_from_slice(&buffer[..length]);
        if tail.ends_with(b"\r\n0\r\n\r\n") {
            ended.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let from = tail.len().saturating_sub(8);
        tail.drain(..from);
    }
}

fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn raise_descriptors() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}
