//! A reverse proxy before an inference server: energy for each request, and nobody has to change.
//!
//! ```text
//! client ─► front ─► forward ─► server        measured ─► lane ─► link ─► wattspand
//!                  ◄─ held / streamed ◄─
//! ```
//!
//! Owns one listener and one connection to the daemon. A span opens when a request arrives at an inference path, begins
//! decode at the first token of content, and closes at the end of the reply; the energy comes back in a header, a
//! trailer, a comment of the event stream, or `usage`. Everything else passes through as it came. It fails open: a
//! daemon that is away, slow or mad never fails a request, and delays it at most by the patience it was given. One
//! thread serves everything; a body is never kept beyond the bounds of `held`, and a client that does not read is not
//! read for.

mod asked;
mod dialect;
mod figure_access;
mod figures;
mod forward;
mod front;
mod held;
mod insertion;
mod lane;
mod link;
mod listen;
mod measured;
mod order;
mod prepare;
#[cfg(target_os = "linux")]
mod process_exit;
#[cfg(not(target_os = "linux"))]
#[path = "process_exit_unsupported.rs"]
mod process_exit;
mod reading;
mod remark;
mod route;
mod scan;
mod server_process;
mod streamed;
mod tally;
#[cfg(target_os = "linux")]
mod tcp_owner;
#[cfg(not(target_os = "linux"))]
#[path = "tcp_owner_unsupported.rs"]
mod tcp_owner;
mod trace;
mod tunnel;
mod visible;
mod weigh;
mod wire;

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use crate::client::Place;
use crate::http::dial::{self, Pool};
use crate::http::{Body, Target};
use figure_access::{FigureAccess, Owner};
pub use figure_access::{FigureGroup, gid_of};
use lane::Lane;
use listen::{Connection, Listener, Socket};
pub use listen::{ListenAddress, ParseListenAddressError};
use process_exit::WatchedProcess;
use remark::Remarks;
use route::Routes;
use server_process::Named;
pub use server_process::ServerProcess;
pub use tally::Tally;
use visible::Log;
use weigh::Scales;

/// How long a reply's last byte may wait for the account, unless told otherwise.
pub const USUAL_PATIENCE: Duration = Duration::from_millis(250);

/// How long running requests may take to end after the proxy was asked to stop.
const GRACE: Duration = Duration::from_secs(10);

/// How long the last accounts may take after that.
const LAST_ACCOUNTS: Duration = Duration::from_secs(2);

/// How the energy is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Annotate {
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
pub struct Settings {
    /// Where it listens.
    pub listen: ListenAddress,
    /// The group that may open a Unix socket besides its owner.
    pub listen_group: Option<u32>,
    /// The server.
    pub target: Target,
    /// Speak HTTP/2 to the server from the first byte.
    pub http2_only: bool,
    /// The server's process, whose share accounts state; none where unknown.
    pub server: Option<ServerProcess>,
    /// Where the daemon is.
    pub place: Place,
    /// How the energy is told.
    pub annotate: Annotate,
    /// Replies to every client are annotated, whatever its access.
    pub annotate_all: bool,
    /// The group whose members get figures.
    pub annotate_group: FigureGroup,
    /// Spans weigh by the tokens they stream.
    pub weigh: bool,
    /// How long a reply waits for its account.
    pub patience: Duration,
    /// The known inference paths count.
    pub known_paths: bool,
    /// Further ones.
    pub paths: Vec<String>,
    /// Connections at a time.
    pub connections: usize,
}

/// What every request needs.
pub struct Proxy {
    target: Target,
    pool: Pool<Body>,
    routes: Routes,
    annotate: Annotate,
    figure_access: FigureAccess,
    weigh: bool,
    lane: Lane,
    scales: Scales,
    tally: Arc<Tally>,
    remarks: Remarks,
    /// Different for every run, so that spans of two proxies with the same process number never meet.
    seed: RandomState,
    count: AtomicU64,
}

impl Proxy {
    /// A number that no other span has, and never 0.
    fn next_span(&self) -> u64 {
        self.seed.hash_one(self.count.fetch_add(1, Ordering::Relaxed)).max(1)
    }

    /// How replies on this connection are annotated: not at all where its owner has no access or is unknown.
    async fn annotate_for(&self, connection: &Connection) -> Annotate {
        if self.annotate == Annotate::Off || self.figure_access.is_for_everyone() {
            return self.annotate;
        }
        let owner = connection.owner().unwrap_or_else(|error| {
            self.remarks
                .say(&format!("cannot look up the user of a connection, which gets no figures: {error}"));
            Owner::Unknown
        });
        if self.figure_access.permits(&owner).await { self.annotate } else { Annotate::Off }
    }
}

/// A proxy that listens and does not serve yet.
pub struct Listening {
    socket: Socket,
    settings: Settings,
    proxy: Arc<Proxy>,
    orders: lane::Orders,
    server: Option<WatchedProcess>,
    log: Log,
}

impl Listening {
    /// Listens; the proxy's lines go to `write`.
    ///
    /// # Errors
    /// The address is taken, the server's process does not exist, or there are no certificates to trust a server by.
    pub fn new(settings: Settings, write: fn(&str)) -> io::Result<Self> {
        let log = Log::new(write);
        let socket = Socket::bind(&settings.listen, settings.listen_group)?;
        let tally = Arc::<Tally>::default();
        let server = watched(settings.server.as_ref())?;
        let named = Named::new(settings.server.clone(), log);
        let (lane, orders) = Lane::new(settings.patience, Arc::clone(&tally), named);
        let proxy = Proxy {
            target: settings.target.clone(),
            pool: dial::pool(&settings.target, dial::Settings { http2_only: settings.http2_only })?,
            routes: Routes::new(settings.known_paths, settings.paths.clone()),
            annotate: settings.annotate,
            figure_access: FigureAccess::new(settings.annotate_all, settings.annotate_group.clone()),
            weigh: settings.weigh,
            lane,
            scales: Scales::default(),
            tally,
            remarks: Remarks::new(log),
            seed: RandomState::new(),
            count: AtomicU64::new(0),
        };
        Ok(Listening { socket, settings, proxy: Arc::new(proxy), orders, server, log })
    }

    /// The URL or path that clients connect to.
    ///
    /// # Errors
    /// The system does not state it.
    pub fn address(&self) -> io::Result<String> {
        self.socket.describe()
    }

    /// One sentence: the connections that get figures.
    ///
    /// # Errors
    /// The system does not state the address.
    pub fn describe_figure_access(&self) -> io::Result<String> {
        if self.proxy.annotate == Annotate::Off {
            return Ok("figures go to no client (--annotate off)".to_owned());
        }
        Ok(self.proxy.figure_access.describe(self.socket.tcp_address()?))
    }

    /// What it counts.
    pub fn tally(&self) -> Arc<Tally> {
        Arc::clone(&self.proxy.tally)
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
        let Listening { socket, settings, proxy, orders, server, log } = self;
        let listener = Listener::new(socket)?;
        let (stopping, stopped) = watch::channel(false);
        let shared = Arc::clone(&proxy.lane.shared);
        let place = settings.place.clone();
        tokio::spawn(
            async move { link::serve(place, orders, &shared, &move |line: &str| log.line(line)).await },
        );
        if let Some(server) = server {
            let named = Arc::clone(&proxy.lane.server);
            server.on_exit(move || named.forget("it has ended"))?;
        }
        if proxy.weigh {
            tokio::spawn(proxy.scales.clone().run());
        }
        let serving = front::serve(listener, Arc::clone(&proxy), settings.connections, stopped);
        let serving = tokio::spawn(serving);
        stop.await;
        // Whoever listens hears it; nobody is left where the front has ended.
        let _ = stopping.send(true);
        let _ = serving.await;
        // Every connection holds the proxy, and the front has let go of it.
        wait(GRACE, || Arc::strong_count(&proxy) == 1).await;
        wait(LAST_ACCOUNTS, || proxy.tally.opened.get() == proxy.tally.ended()).await;
        Ok(())
    }
}

/// The server's process, where one is named.
fn watched(server: Option<&ServerProcess>) -> io::Result<Option<WatchedProcess>> {
    let Some(ServerProcess::Process(pid)) = server else { return Ok(None) };
    let watched = WatchedProcess::new(*pid);
    let failed = |error: io::Error| {
        io::Error::new(error.kind(), format!("--upstream-pid {pid}: cannot watch this process: {error}"))
    };
    watched.map(Some).map_err(failed)
}

async fn wait(longest: Duration, so: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + longest;
    while !so() && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
