//! The reverse proxies that ours is compared with: one of bare hyper, and nginx and haproxy where they are installed.
//!
//! Each runs as a process of its own, with one worker, kept-alive connections to the server, and no buffering.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};

/// The queue of connections of every proxy.
pub const BACKLOG: i32 = 4096;

/// Set in the process that is the proxy of bare hyper: the server's address.
const BARE_UPSTREAM: &str = "WATTSPAN_BENCH_BARE_UPSTREAM";

/// A process that is killed when this value is dropped.
pub struct ChildGuard(pub Child);

impl Drop for ChildGuard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A proxy to compare with.
pub struct Peer {
    pub name: &'static str,
    pub address: SocketAddr,
    _process: ChildGuard,
}

/// Starts every proxy that is installed, the bare one first, in front of `upstream`.
pub fn start_all(upstream: SocketAddr, directory: &Path) -> Vec<Peer> {
    let bare = Some(start_bare(upstream));
    let others = [start_nginx(upstream, directory), start_haproxy(upstream, directory)];
    [bare].into_iter().chain(others).flatten().collect()
}

/// Runs the bare proxy and never returns, if this process was started for it.
pub fn run_bare_if_requested() {
    let Ok(upstream) = std::env::var(BARE_UPSTREAM) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(serve_bare(upstream));
}

fn start_bare(upstream: SocketAddr) -> Peer {
    let program = std::env::current_exe().expect("this program");
    let mut child = Command::new(program)
        .env(BARE_UPSTREAM, upstream.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the bare proxy starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("its address");
    Peer {
        name: "bare hyper",
        address: line.trim().parse().expect("its address"),
        _process: ChildGuard(child),
    }
}

async fn serve_bare(upstream: String) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    rustix::net::listen(&listener, BACKLOG).expect("a longer queue");
    println!("{}", listener.local_addr().expect("its address"));
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client: Client<_, Incoming> = Client::builder(TokioExecutor::new()).build(connector);
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        let (client, upstream) = (client.clone(), upstream.clone());
        let service = service_fn(move |request| forward_bare(client.clone(), upstream.clone(), request));
        tokio::spawn(
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
        );
    }
}

async fn forward_bare(
    client: Client<HttpConnector, Incoming>,
    upstream: String,
    mut request: Request<Incoming>,
) -> Result<Response<http_body_util::combinators::BoxBody<bytes::Bytes, hyper::Error>>, BareError> {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = Uri::builder().scheme("http").authority(upstream).path_and_query(path).build()?;
    request.headers_mut().remove(http::header::HOST);
    Ok(client.request(request).await?.map(BodyExt::boxed))
}

type BareError = Box<dyn std::error::Error + Send + Sync>;

fn start_nginx(upstream: SocketAddr, directory: &Path) -> Option<Peer> {
    let address = free_address();
    let config = directory.join("nginx.conf");
    let place = directory.display();
    let text = format!(
        "daemon off; worker_processes 1; pid {place}/nginx.pid; error_log /dev/null;\n\
         events {{ worker_connections 8192; }}\n\
         http {{ access_log off; client_body_temp_path {place}/body; proxy_temp_path {place}/proxy;\n\
         fastcgi_temp_path {place}/f; uwsgi_temp_path {place}/u; scgi_temp_path {place}/s;\n\
         upstream s {{ server {upstream}; keepalive 64; }}\n\
         server {{ listen {address} backlog={BACKLOG}; location / {{ proxy_pass http://s; proxy_buffering off;\n\
         proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }} }}\n"
    );
    std::fs::write(&config, text).ok()?;
    start("nginx", Command::new("nginx").arg("-p").arg(directory).arg("-c").arg(config), address)
}

fn start_haproxy(upstream: SocketAddr, directory: &Path) -> Option<Peer> {
    let address = free_address();
    let config = directory.join("haproxy.cfg");
    let mut file = std::fs::File::create(&config).ok()?;
    write!(
        file,
        "global\n nbthread 1\n maxconn 8192\ndefaults\n mode http\n timeout connect 5s\n timeout client 60s\n \
         timeout server 60s\n option http-keep-alive\nfrontend f\n bind {address} backlog {BACKLOG}\n \
         default_backend b\nbackend b\n http-reuse always\n server s {upstream}\n"
    )
    .ok()?;
    start("haproxy", Command::new("haproxy").arg("-db").arg("-f").arg(config), address)
}

/// Starts a proxy and waits until it accepts connections; `None` where it is not installed or does not start.
fn start(name: &'static str, command: &mut Command, address: SocketAddr) -> Option<Peer> {
    const START_TIMEOUT: Duration = Duration::from_secs(5);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
    let peer = Peer { name, address, _process: ChildGuard(child) };
    let deadline = Instant::now() + START_TIMEOUT;
    while TcpStream::connect(address).is_err() {
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Some(peer)
}

/// An address that no process listens on.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port")
}
