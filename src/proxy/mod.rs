//! A reverse proxy for an inference server that measures the energy of each request.
//!
//! ```text
//! client ─► frontend ─► forward ─► server
//!        ◄─ buffered_response, streamed_body ◄─
//! request_span ─► span_client ─► daemon_connection ─► wattspand
//! ```
//!
//! Owns one listener and one connection to the daemon. A span opens when a request arrives at an inference path, begins
//! decode at the first token of content, and closes at the end of the reply; the energy comes back in a header, a
//! trailer, a comment of the event stream, or `usage`. Everything else passes through as it came. It fails open: a
//! daemon that is away, slow or mad never fails a request, and delays it at most by the account timeout. One
//! thread serves everything; a body is never kept beyond the bounds of `buffered_response`, and a client that does not
//! read is not read for.

mod annotation;
mod annotation_policy;
mod buffered_response;
mod client_io;
mod counters;
mod daemon_call;
mod daemon_connection;
mod escape;
mod forward;
mod frontend;
mod json_scanner;
mod listener;
#[cfg(target_os = "linux")]
mod process_exit;
#[cfg(not(target_os = "linux"))]
#[path = "process_exit_unsupported.rs"]
mod process_exit;
mod rate_limited_log;
mod request_body;
mod request_span;
mod response_metadata;
mod response_reader;
mod route;
mod server_process;
mod span_client;
mod streamed_body;
#[cfg(target_os = "linux")]
mod tcp_owner;
#[cfg(not(target_os = "linux"))]
#[path = "tcp_owner_unsupported.rs"]
mod tcp_owner;
mod token_weights;
mod trace_context;
mod upgrade;
mod upstream_request;
mod usage_inserter;

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use crate::client::SocketPath;
use crate::http::connection_pool::{self, ConnectionPool};
use crate::http::{BaseUrl, BoxBody};
pub use annotation_policy::{AnnotationGroup, lookup_gid};
use annotation_policy::{AnnotationPolicy, PeerUser};
pub use counters::ProxyCounters;
use escape::LogSink;
use listener::{AcceptedConnection, ListenSocket, ProxyListener};
pub use listener::{ListenAddress, ParseListenAddressError};
use process_exit::WatchedProcess;
use rate_limited_log::RateLimitedLog;
use route::Routes;
pub use server_process::ServerProcess;
use server_process::ServerProcessTracker;
use span_client::SpanClient;
use token_weights::TokenWeights;

/// Default for how long a reply's last byte may wait for the account.
pub const DEFAULT_ACCOUNT_TIMEOUT: Duration = Duration::from_millis(250);

/// How long running requests may take to end after the proxy was asked to stop.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the last accounts may take after that.
const FINAL_ACCOUNTS_TIMEOUT: Duration = Duration::from_secs(2);

/// How the energy is added to replies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AnnotationMode {
    /// Not at all: replies are exactly the server's.
    Off,
    /// In headers, trailers and comments.
    #[default]
    Headers,
    /// There, and in `usage` of the JSON itself.
    Usage,
}

/// How the proxy is set up.
#[derive(Debug, Clone)]
pub struct ProxySettings {
    /// Where it listens.
    pub listen: ListenAddress,
    /// The group that may open a Unix socket besides its owner.
    pub listen_group: Option<u32>,
    /// The server.
    pub upstream: BaseUrl,
    /// Speak HTTP/2 to the server from the first byte.
    pub http2_only: bool,
    /// The server's process, whose share accounts state; none where unknown.
    pub server_process: Option<ServerProcess>,
    /// Where the daemon is.
    pub daemon_socket: SocketPath,
    /// How the energy is added to replies.
    pub annotation_mode: AnnotationMode,
    /// Replies to every client are annotated, whatever its access.
    pub annotate_all: bool,
    /// The group whose members get annotated replies.
    pub annotate_group: AnnotationGroup,
    /// Spans weigh by the tokens they stream.
    pub weigh_by_tokens: bool,
    /// How long a reply waits for its account.
    pub account_timeout: Duration,
    /// The known inference paths count.
    pub use_known_paths: bool,
    /// Further ones.
    pub custom_paths: Vec<String>,
    /// Connections at a time.
    pub max_connections: usize,
}

/// What every request needs.
pub struct Proxy {
    upstream: BaseUrl,
    pool: ConnectionPool<BoxBody>,
    routes: Routes,
    annotation_mode: AnnotationMode,
    annotation_policy: AnnotationPolicy,
    weigh_by_tokens: bool,
    span_client: SpanClient,
    token_weights: TokenWeights,
    counters: Arc<ProxyCounters>,
    log: RateLimitedLog,
    /// Different for every run, so that spans of two proxies with the same process number never meet.
    span_number_seed: RandomState,
    span_count: AtomicU64,
}

impl Proxy {
    /// A number that no other span has, and never 0.
    fn next_span_number(&self) -> u64 {
        self.span_number_seed.hash_one(self.span_count.fetch_add(1, Ordering::Relaxed)).max(1)
    }

    /// How replies on this connection are annotated: not at all where its owner has no access or is unknown.
    async fn annotation_mode_for(&self, connection: &AcceptedConnection) -> AnnotationMode {
        if self.annotation_mode == AnnotationMode::Off || self.annotation_policy.is_unrestricted() {
            return self.annotation_mode;
        }
        let user = connection.peer_user().unwrap_or_else(|error| {
            self.log.write_line(&format!(
                "cannot look up the user of a connection, which gets no figures: {error}"
            ));
            PeerUser::Unknown
        });
        if self.annotation_policy.is_permitted(&user).await {
            self.annotation_mode
        } else {
            AnnotationMode::Off
        }
    }
}

/// A proxy that listens and does not serve yet.
pub struct BoundProxy {
    socket: ListenSocket,
    settings: ProxySettings,
    proxy: Arc<Proxy>,
    calls: span_client::CallReceiver,
    watched_server: Option<WatchedProcess>,
    log_sink: LogSink,
}

impl BoundProxy {
    /// Listens; the proxy's lines go to `write`.
    ///
    /// # Errors
    /// The address is taken, the server's process does not exist, or there are no certificates to trust a server by.
    pub fn new(settings: ProxySettings, write: fn(&str)) -> io::Result<Self> {
        let log_sink = LogSink::new(write);
        let socket = ListenSocket::bind(&settings.listen, settings.listen_group)?;
        let counters = Arc::<ProxyCounters>::default();
        let watched_server = watch_server(settings.server_process.as_ref())?;
        let server_process = ServerProcessTracker::new(settings.server_process.clone(), log_sink);
        let (span_client, calls) =
            SpanClient::new(settings.account_timeout, Arc::clone(&counters), server_process);
        let proxy = Proxy {
            upstream: settings.upstream.clone(),
            pool: connection_pool::build_pool(
                &settings.upstream,
                connection_pool::PoolSettings { http2_only: settings.http2_only },
            )?,
            routes: Routes::new(settings.use_known_paths, settings.custom_paths.clone()),
            annotation_mode: settings.annotation_mode,
            annotation_policy: AnnotationPolicy::new(settings.annotate_all, settings.annotate_group.clone()),
            weigh_by_tokens: settings.weigh_by_tokens,
            span_client,
            token_weights: TokenWeights::default(),
            counters,
            log: RateLimitedLog::new(log_sink),
            span_number_seed: RandomState::new(),
            span_count: AtomicU64::new(0),
        };
        Ok(BoundProxy { socket, settings, proxy: Arc::new(proxy), calls, watched_server, log_sink })
    }

    /// The URL or path that clients connect to.
    ///
    /// # Errors
    /// The system does not state it.
    pub fn address(&self) -> io::Result<String> {
        self.socket.describe()
    }

    /// One sentence: the connections that get annotated replies.
    ///
    /// # Errors
    /// The system does not state the address.
    pub fn describe_annotation_policy(&self) -> io::Result<String> {
        if self.proxy.annotation_mode == AnnotationMode::Off {
            return Ok("figures go to no client (--annotate off)".to_owned());
        }
        Ok(self.proxy.annotation_policy.describe(self.socket.tcp_address()?))
    }

    /// What it counts.
    pub fn counters(&self) -> Arc<ProxyCounters> {
        Arc::clone(&self.proxy.counters)
    }

    /// Serves until `stop` is ready, and then until the running requests have ended or were given time enough.
    ///
    /// # Errors
    /// The system gives no runtime.
    pub fn serve(self, stop: impl Future<Output = ()>) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.run(stop))?;
        // Connections that are still open were given their time.
        runtime.shutdown_background();
        Ok(())
    }

    async fn run(self, stop: impl Future<Output = ()>) -> io::Result<()> {
        let BoundProxy { socket, settings, proxy, calls, watched_server, log_sink } = self;
        let listener = ProxyListener::new(socket)?;
        let (stopping, stopped) = watch::channel(false);
        let state = Arc::clone(&proxy.span_client.state);
        let daemon_socket = settings.daemon_socket.clone();
        tokio::spawn(async move {
            daemon_connection::run(daemon_socket, calls, &state, &move |line: &str| log_sink.write_line(line))
                .await
        });
        if let Some(server) = watched_server {
            let server_process = Arc::clone(&proxy.span_client.server_process);
            server.on_exit(move || server_process.forget("it has ended"))?;
        }
        if proxy.weigh_by_tokens {
            tokio::spawn(proxy.token_weights.clone().run());
        }
        let frontend_task = frontend::serve(listener, Arc::clone(&proxy), settings.max_connections, stopped);
        let frontend_task = tokio::spawn(frontend_task);
        stop.await;
        // The send fails where the frontend has ended already.
        let _ = stopping.send(true);
        let _ = frontend_task.await;
        // Every connection holds the proxy, and the frontend has dropped it.
        wait_until(SHUTDOWN_TIMEOUT, || Arc::strong_count(&proxy) == 1).await;
        wait_until(FINAL_ACCOUNTS_TIMEOUT, || proxy.counters.opened.get() == proxy.counters.ended_spans())
            .await;
        Ok(())
    }
}

/// The server's process, where one is named.
fn watch_server(server_process: Option<&ServerProcess>) -> io::Result<Option<WatchedProcess>> {
    let Some(ServerProcess::Process(pid)) = server_process else { return Ok(None) };
    let watched = WatchedProcess::new(*pid);
    let failed = |error: io::Error| {
        io::Error::new(error.kind(), format!("--upstream-pid {pid}: cannot watch this process: {error}"))
    };
    watched.map(Some).map_err(failed)
}

async fn wait_until(timeout: Duration, condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + timeout;
    while !condition() && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
