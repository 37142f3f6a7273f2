//! Cost of the proxy: time to the first byte, time to each streamed chunk, memory per stream; against direct requests
//! to the same stub, in alternating rounds of one run.
//!
//! Prints a table of values and targets. The stub and the clients run in this process, proxy and daemon in others. Run
//! with `cargo bench --bench proxy` on a quiet machine: every hop of a chunk wakes another process.

#[path = "../tests/support/programs.rs"]
mod programs;
mod table;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use table::Table;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wattspan::clock::monotonic_ns;

/// Rounds, alternating; the median round's difference counts.
const ROUNDS: usize = 7;

/// Requests per round.
const REQUESTS: usize = 100;

/// Chunks per round.
const CHUNKS: usize = 500;

/// Concurrent streams.
const STREAMS: usize = 2000;

const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
const MACHINE: &str =
    "[[domain]]\nname = \"package-0\"\nkind = \"package\"\nprofile = [[1.0, 80]]\nquantum_uj = 61\n";

fn main() {
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
    let proxy = Proxy::start(stub, &socket);
    let mut table = Table::new("the proxy on loopback (differences of medians within one run)");
    added_latency(&mut table, "first byte", 150.0, [stub, proxy.address], first_bytes);
    added_latency(&mut table, "a chunk", 30.0, [stub, proxy.address], chunk_times);
    streams(&mut table, &proxy);
}

struct ChildGuard(Child);

impl Drop for ChildGuard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Proxy {
    child: ChildGuard,
    address: SocketAddr,
}

impl Proxy {
    fn start(stub: SocketAddr, socket: &std::path::Path) -> Self {
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
        while !line.contains(" answers") {
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

/// A server that answers `/v1/completions?n=N` with a stream of N chunks, 1 ms apart, each with the time of sending.
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
            std::thread::sleep(Duration::from_millis(1));
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

fn first_bytes(to: SocketAddr) -> f64 {
    let mut stream = connect(to);
    let mut histogram = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3).expect("a histogram");
    for _ in 0..REQUESTS {
        let (began, mut first) = (Instant::now(), None);
        ask(&mut stream, 0, |_| _ = first.get_or_insert_with(|| began.elapsed()));
        histogram.saturating_record(first.expect("a byte came").as_nanos() as u64);
    }
    histogram.value_at_quantile(0.5) as f64 / 1e3
}

fn chunk_times(to: SocketAddr) -> f64 {
    let mut stream = connect(to);
    let mut histogram = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3).expect("a histogram");
    ask(&mut stream, CHUNKS, |bytes| {
        let now = monotonic_ns();
        for at in memchr::memmem::find_iter(bytes, b"at=") {
            let digits = bytes.get(at + 3..at + 23).and_then(|digits| std::str::from_utf8(digits).ok());
            if let Some(sent) = digits.and_then(|digits| digits.parse::<u64>().ok()) {
                histogram.saturating_record(now.saturating_sub(sent));
            }
        }
    });
    histogram.value_at_quantile(0.5) as f64 / 1e3
}

/// The latency that the proxy adds, in alternating rounds.
fn added_latency(
    table: &mut Table,
    what: &str,
    most_us: f64,
    ways: [SocketAddr; 2],
    time_us: fn(SocketAddr) -> f64,
) {
    let (mut direct, mut through, mut added) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let [one, other] = ways.map(time_us);
        direct.push(one);
        through.push(other);
        added.push(other - one);
    }
    table.note(&format!("{what}, direct, p50"), median(&mut direct), "us");
    table.note(&format!("{what}, through the proxy, p50"), median(&mut through), "us");
    table.at_most(&format!("{what}, added, p50"), median(&mut added), most_us, "us");
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
        let proxy = tokio::task::spawn_blocking(move || Proxy::start(stub, &socket)).await.expect("started");
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
