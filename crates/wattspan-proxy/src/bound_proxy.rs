//! A proxy from its listening socket to its shutdown.
//!
//! Owns the listener and the task of the daemon connection. One thread runs every task.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use wattspan_client::SocketPath;
use wattspan_http::BaseUrl;
use wattspan_http::connection_pool::{self, PoolSettings};

use super::annotation_policy::{AnnotationGroup, AnnotationPolicy};
use super::connection_limit::ConnectionLimit;
use super::context::{AnnotationMode, Proxy, SpanNumbers};
use super::counters::ProxyCounters;
use super::listener::{ListenAddress, ListenSocket, ProxyListener};
use super::log::{LogSink, RateLimitedLog};
use super::process_exit::WatchedProcess;
use super::request_span::TokenWeights;
use super::route::Routes;
use super::server_process::{ServerProcess, ServerProcessTracker};
use super::span_client::{CallReceiver, SpanClient};
use super::{daemon_connection, frontend};

/// Default of [`ProxySettings::account_timeout`].
pub const DEFAULT_ACCOUNT_TIMEOUT: Duration = Duration::from_millis(250);

/// Default of [`ProxySettings::head_timeout`].
pub const DEFAULT_HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Default of [`ProxySettings::body_timeout`].
pub const DEFAULT_BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// How long open requests may continue after the proxy received its stop.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the proxy waits for the last accounts after that.
const FINAL_ACCOUNTS_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, Clone)]
pub struct ProxySettings {
    /// Where the proxy listens.
    pub listen: ListenAddress,
    /// The group whose members may connect to a Unix socket, besides its owner.
    pub listen_group: Option<u32>,
    /// The inference server.
    pub upstream: BaseUrl,
    /// Speak HTTP/2 to the server without negotiation.
    pub http2_only: bool,
    /// The server's process, whose share accounts state; `None` where it is not known.
    pub server_process: Option<ServerProcess>,
    pub daemon_socket: SocketPath,
    /// Where the energy is added to responses.
    pub annotation_mode: AnnotationMode,
    /// Annotate the responses of every client, without a check of its access.
    pub annotate_all: bool,
    /// The group whose members get annotated responses.
    pub annotate_group: AnnotationGroup,
    /// Weigh spans by the tokens they stream.
    pub weigh_by_tokens: bool,
    /// Whether each account has a hash of the request's prompt.
    pub hash_prompts: bool,
    /// How long the end of a response may wait for the account.
    pub account_timeout: Duration,
    /// Measure requests to the inference paths of known servers.
    pub use_known_paths: bool,
    /// Further inference paths.
    pub custom_paths: Vec<String>,
    /// The largest number of open connections. Further ones wait for `head_timeout`, then they get status 503.
    pub max_connections: usize,
    /// The time for the head of a request, from its first byte.
    pub head_timeout: Duration,
    /// How long the body of an inference request may send nothing; in all it may wait ten times as long.
    pub body_timeout: Duration,
}

/// The text of the reply to connections beyond the limit.
const CONNECTIONS_IN_USE: &str = "wattspan proxy: all connections are in use (--connections); retry later";

/// A proxy that listens but does not accept connections yet.
pub struct BoundProxy {
    socket: ListenSocket,
    settings: ProxySettings,
    proxy: Arc<Proxy>,
    calls: CallReceiver,
    watched_server: Option<WatchedProcess>,
    log_sink: LogSink,
}

impl BoundProxy {
    /// Binds the socket; `write` receives each log line.
    ///
    /// # Errors
    /// The address is in use, the server's process does not exist, or no trusted certificates are installed.
    pub fn new(settings: ProxySettings, write: fn(&str)) -> io::Result<Self> {
        let log_sink = LogSink::new(write);
        let socket = ListenSocket::bind(&settings.listen, settings.listen_group)?;
        let counters = Arc::<ProxyCounters>::default();
        let watched_server = watch_server(settings.server_process.as_ref())?;
        let server_process = ServerProcessTracker::new(settings.server_process.clone(), log_sink);
        let (span_client, calls) =
            SpanClient::new(settings.account_timeout, Arc::clone(&counters), log_sink, server_process);
        let pool_settings = PoolSettings { http2_only: settings.http2_only };
        let proxy = Proxy {
            upstream: settings.upstream.clone(),
            pool: connection_pool::build_pool(&settings.upstream, pool_settings)?,
            routes: Routes::new(settings.use_known_paths, settings.custom_paths.clone()),
            annotation_mode: settings.annotation_mode,
            annotation_policy: AnnotationPolicy::new(settings.annotate_all, settings.annotate_group.clone()),
            weigh_by_tokens: settings.weigh_by_tokens,
            hash_prompts: settings.hash_prompts,
            body_timeout: settings.body_timeout,
            span_client,
            token_weights: TokenWeights::default(),
            counters,
            log: RateLimitedLog::new(log_sink),
            span_numbers: SpanNumbers::default(),
        };
        Ok(BoundProxy { socket, settings, proxy: Arc::new(proxy), calls, watched_server, log_sink })
    }

    /// The URL or path that clients connect to.
    ///
    /// # Errors
    /// The system does not report the socket's address.
    pub fn address(&self) -> io::Result<String> {
        self.socket.describe()
    }

    /// One sentence that states which clients get annotated responses.
    ///
    /// # Errors
    /// The system does not report the socket's address.
    pub fn describe_annotation_policy(&self) -> io::Result<String> {
        if self.proxy.annotation_mode == AnnotationMode::Off {
            return Ok("no reply has energy annotations (--annotate off)".to_owned());
        }
        Ok(self.proxy.annotation_policy.describe(self.socket.tcp_address()?))
    }

    /// The counters, which stay valid while the proxy serves.
    pub fn counters(&self) -> Arc<ProxyCounters> {
        Arc::clone(&self.proxy.counters)
    }

    /// Serves until `stop` is ready, then waits a bounded time for open requests and the last accounts.
    ///
    /// # Errors
    /// The system creates no async runtime, or the server's process cannot be watched.
    pub fn serve(self, stop: impl Future<Output = ()>) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.run(stop))?;
        // The timeouts for the connections that are still open have passed.
        runtime.shutdown_background();
        Ok(())
    }

    async fn run(self, stop: impl Future<Output = ()>) -> io::Result<()> {
        let head_timeout = self.settings.head_timeout;
        let limit = ConnectionLimit::new(self.settings.max_connections, head_timeout, CONNECTIONS_IN_USE);
        let proxy = Arc::clone(&self.proxy);
        let listener = self.start_tasks()?;
        let (stopping, stopped) = watch::channel(false);
        let frontend_task = frontend::serve(listener, Arc::clone(&proxy), limit, head_timeout, stopped);
        let frontend_task = tokio::spawn(frontend_task);
        stop.await;
        // The send fails where the frontend has ended already.
        let _ = stopping.send(true);
        let _ = frontend_task.await;
        wait_for_shutdown(&proxy).await;
        Ok(())
    }

    /// Starts the tasks beside the frontend: the daemon connection, the watch of the server, and the weights.
    fn start_tasks(self) -> io::Result<ProxyListener> {
        let BoundProxy { socket, settings, proxy, calls, watched_server, log_sink } = self;
        let listener = ProxyListener::new(socket)?;
        let state = Arc::clone(&proxy.span_client.state);
        tokio::spawn(async move {
            let log = move |line: &str| log_sink.write_line(line);
            daemon_connection::run(settings.daemon_socket, calls, &state, &log).await
        });
        if let Some(server) = watched_server {
            let server_process = Arc::clone(&proxy.span_client.server_process);
            server.on_exit(move || server_process.forget("it has ended"))?;
        }
        if proxy.weigh_by_tokens {
            tokio::spawn(proxy.token_weights.clone().run());
        }
        Ok(listener)
    }
}

/// Watches the server's process, where the settings name one.
fn watch_server(server_process: Option<&ServerProcess>) -> io::Result<Option<WatchedProcess>> {
    let Some(ServerProcess::Process(pid)) = server_process else { return Ok(None) };
    let watched = WatchedProcess::new(*pid);
    let failed = |error: io::Error| {
        io::Error::new(error.kind(), format!("--upstream-pid {pid}: cannot watch this process: {error}"))
    };
    watched.map(Some).map_err(failed)
}

/// Waits for the connections, each of which holds the proxy, and then for the last accounts. The caller holds the only
/// other reference.
async fn wait_for_shutdown(proxy: &Arc<Proxy>) {
    wait_until(SHUTDOWN_TIMEOUT, || Arc::strong_count(proxy) == 1).await;
    wait_until(FINAL_ACCOUNTS_TIMEOUT, || proxy.counters.opened.get() == proxy.counters.ended_spans()).await;
}

async fn wait_until(timeout: Duration, condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + timeout;
    while !condition() && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
