//! `wattspan proxy`: energy for each request of an inference server.
//!
//! Owns the flags, and the end: a first signal lets the running requests end, a second one ends the program.

use std::time::Duration;

use super::exit_status::{CliError, OK};
use super::{MeterOptions, eprint_message};
use crate::client::SocketPath;
use crate::http::BaseUrl;
use crate::proxy::{
    AnnotationGroup, AnnotationMode, BoundProxy, DEFAULT_ACCOUNT_TIMEOUT, ListenAddress, ProxySettings,
    ServerProcess, lookup_gid,
};

/// Where to listen, whom to forward to, and how to tell the energy.
#[derive(Debug, clap::Args)]
pub struct ProxyArgs {
    /// Listen on HOST:PORT (port 0 takes a free one) or on a Unix socket, unix:PATH
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8088")]
    listen: ListenAddress,
    /// Let the members of this group open the Unix socket; its mode is 0660 then, else 0600
    #[arg(long, value_name = "GROUP")]
    listen_group: Option<String>,
    /// Forward to this server: http:// or https://, with or without a base path
    #[arg(long, value_name = "URL")]
    upstream: BaseUrl,
    /// Speak HTTP/2 to the server from the first byte (with https it is agreed on by itself)
    #[arg(long)]
    upstream_http2: bool,
    /// The server's process, whose share of each account is stated too; without it there is no such share
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    upstream_pid: Option<u32>,
    /// Or the server's control group, by its path in /proc/PID/cgroup
    #[arg(long, value_name = "PATH", conflicts_with = "upstream_pid")]
    upstream_cgroup: Option<String>,
    /// How the energy is told: not at all; in headers, trailers and comments of event streams; or in usage.energy too
    #[arg(long, value_enum, value_name = "HOW", default_value_t = AnnotateMode::Headers)]
    annotate: AnnotateMode,
    /// Show the energy to clients of this group's members too, not only to this user and root
    #[arg(long, value_name = "GROUP", default_value = DEFAULT_SPAN_GROUP)]
    annotate_group: String,
    /// Show the energy to every client, whatever its access and wherever it connects from
    #[arg(long)]
    annotate_all: bool,
    /// How requests that run at once share: equally, or by the tokens they stream
    #[arg(long, value_enum, value_name = "HOW", default_value_t = WeightMode::Equal)]
    weight: WeightMode,
    /// A further path whose POST requests are inferences, known by its end; may be given again
    #[arg(long = "path", value_name = "PATH")]
    paths: Vec<String>,
    /// Only those of --path, not the known ones of OpenAI, Anthropic, Ollama and llama.cpp
    #[arg(long, requires = "paths")]
    only_paths: bool,
    /// How long a reply may wait for its account, at most
    #[arg(long, value_name = "MILLISECONDS", default_value_t = DEFAULT_ACCOUNT_TIMEOUT.as_millis() as u64)]
    patience: u64,
    /// Connections at a time; more wait
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    connections: u32,
}

/// The group with span access, unless the daemon's configuration names another.
const DEFAULT_SPAN_GROUP: &str = "wattspan";

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum AnnotateMode {
    Off,
    Headers,
    Usage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum WeightMode {
    Equal,
    Tokens,
}

/// Serves until it is told to stop.
pub fn proxy(options: &MeterOptions, args: &ProxyArgs) -> Result<u8, CliError> {
    if options.replay.is_some() || options.config.is_some() {
        let hint = "start one: wattspand, or wattspand --replay FILE --socket PATH for a simulated machine";
        return Err(anyhow::anyhow!("the proxy asks a daemon and measures nothing itself; {hint}").into());
    }
    let descriptor_limit = raise_descriptor_limit();
    let settings = ProxySettings {
        listen: args.listen.clone(),
        listen_group: listen_gid(args)?,
        upstream: args.upstream.clone(),
        http2_only: args.upstream_http2,
        server_process: server_process(args),
        daemon_socket: options.socket.clone().map_or_else(SocketPath::from_env, SocketPath::Explicit),
        annotation_mode: match args.annotate {
            AnnotateMode::Off => AnnotationMode::Off,
            AnnotateMode::Headers => AnnotationMode::Headers,
            AnnotateMode::Usage => AnnotationMode::Usage,
        },
        annotate_all: args.annotate_all,
        annotate_group: annotate_group_members(args)?,
        weigh_by_tokens: args.weight == WeightMode::Tokens,
        account_timeout: Duration::from_millis(args.patience),
        use_known_paths: !args.only_paths,
        custom_paths: args.paths.clone(),
        max_connections: args.connections as usize,
    };
    let proxy = BoundProxy::new(settings, eprint_message)?;
    let counters = proxy.counters();
    eprint_message(&format!("listening at {}, forwarding to {}", proxy.address()?, args.upstream));
    eprint_message(&proxy.describe_annotation_policy()?);
    if let Some(limit) = descriptor_limit.filter(|most| *most < 2 * u64::from(args.connections)) {
        eprint_message(&format!(
            "{limit} descriptors are allowed (ulimit -n): about {} requests at a time",
            limit / 2
        ));
    }
    proxy.serve(shutdown_signal())?;
    eprint_message(&counters.to_string());
    Ok(OK)
}

/// The server's process, as far as it is named.
fn server_process(args: &ProxyArgs) -> Option<ServerProcess> {
    let process = args.upstream_pid.map(ServerProcess::Process);
    process.or_else(|| args.upstream_cgroup.clone().map(ServerProcess::ControlGroup))
}

/// The number of the group that may open the Unix socket.
fn listen_gid(args: &ProxyArgs) -> Result<Option<u32>, CliError> {
    let Some(name) = &args.listen_group else { return Ok(None) };
    if matches!(args.listen, ListenAddress::Tcp(_)) {
        return Err(anyhow::anyhow!("--listen-group is for a Unix socket; give --listen unix:PATH").into());
    }
    match lookup_gid(name) {
        Some(gid) => Ok(Some(gid)),
        None => Err(anyhow::anyhow!("--listen-group {name}: there is no such group on this machine").into()),
    }
}

/// The group whose members get figures. The usual one may be missing; one that was asked for may not.
fn annotate_group_members(args: &ProxyArgs) -> Result<AnnotationGroup, CliError> {
    let name = &args.annotate_group;
    let group = AnnotationGroup::lookup(name);
    if group.exists() || name == DEFAULT_SPAN_GROUP {
        return Ok(group);
    }
    Err(anyhow::anyhow!("--annotate-group {name}: there is no such group on this machine").into())
}

/// SIGINT or SIGTERM. The second one ends the program by itself, since nobody waits for it any more.
async fn shutdown_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        // Without handlers the signals do what they always do.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    eprint_message("stopping; running requests have 10 s to end");
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        std::process::exit(1);
    });
}

/// Raises the soft limit of open files to the hard one; each request takes two. Gives what it is now.
fn raise_descriptor_limit() -> Option<u64> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // What cannot be raised stays as it is, and is told.
    let _ = setrlimit(Resource::Nofile, limit);
    getrlimit(Resource::Nofile).current
}
