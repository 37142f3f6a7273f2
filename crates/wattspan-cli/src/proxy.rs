//! `wattspan proxy`: a reverse proxy that measures the energy of each request of an inference server.
//!
//! The first SIGINT or SIGTERM stops accepting requests and lets the running ones finish. The second one exits.

use std::time::Duration;

use wattspan_client::SocketPath;
use wattspan_http::BaseUrl;
use wattspan_proxy::{
    AnnotationGroup, AnnotationMode, BoundProxy, DEFAULT_ACCOUNT_TIMEOUT, DEFAULT_BODY_TIMEOUT,
    DEFAULT_HEAD_TIMEOUT, ListenAddress, ProxySettings, ServerProcess,
};

use super::connect::MeterOptions;
use super::exit_status::{CliError, OK, USAGE};
use super::listen_group::listen_group_gid;
use super::output::eprint_message;
use super::termination::TerminationSignals;

/// Arguments of `wattspan proxy`.
#[derive(Debug, clap::Args)]
pub struct ProxyArgs {
    /// Listen address: HOST:PORT (port 0: any free port) or unix:PATH for a Unix socket
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8088")]
    listen: ListenAddress,
    /// Group that may connect to the Unix socket (mode 0660, else 0600)
    #[arg(long, value_name = "GROUP")]
    listen_group: Option<String>,
    /// Server to forward to: http:// or https://, with an optional base path
    #[arg(long, value_name = "URL")]
    upstream: BaseUrl,
    /// Use HTTP/2 with prior knowledge (over https it is negotiated automatically)
    #[arg(long)]
    upstream_http2: bool,
    /// Process of the server; adds the process share to each account
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    upstream_pid: Option<u32>,
    /// Control group of the server, as in /proc/PID/cgroup; adds its share to each account
    #[arg(long, value_name = "PATH", conflicts_with = "upstream_pid")]
    upstream_cgroup: Option<String>,
    /// How to report the energy: off; in headers, trailers and event-stream comments; or also in usage.energy
    #[arg(long, value_enum, value_name = "HOW", default_value_t = AnnotateMode::Headers)]
    annotate: AnnotateMode,
    /// Report the energy to clients of this group too, not only to this user and root
    #[arg(long, value_name = "GROUP", default_value = DEFAULT_SPAN_GROUP)]
    annotate_group: String,
    /// Report the energy to every client, regardless of its access and address
    #[arg(long)]
    annotate_all: bool,
    /// How concurrent requests share energy: equally, or by streamed tokens
    #[arg(long, value_enum, value_name = "HOW", default_value_t = WeightMode::Equal)]
    weight: WeightMode,
    /// Add a hash of each prompt to its account, for `wattspan ipw import --lm-eval`
    #[arg(long)]
    prompt_hash: bool,
    /// Additional path suffix whose POST requests are inferences; repeatable
    #[arg(long = "path", value_name = "PATH")]
    paths: Vec<String>,
    /// Use only the paths of --path, without those of OpenAI, Anthropic, Ollama and llama.cpp
    #[arg(long, requires = "paths")]
    only_paths: bool,
    /// Maximum time a reply waits for its account
    #[arg(long, value_name = "MILLISECONDS", default_value_t = DEFAULT_ACCOUNT_TIMEOUT.as_millis() as u64)]
    patience: u64,
    /// Maximum time for the head of a request; idle connections have 60 s
    #[arg(long, value_name = "MILLISECONDS", default_value_t = DEFAULT_HEAD_TIMEOUT.as_millis() as u64,
          value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    head_timeout: u64,
    /// Maximum time without a byte of the body of an inference request, which may wait ten times as long in all; then it
    /// gets status 408
    #[arg(long, value_name = "MILLISECONDS", default_value_t = DEFAULT_BODY_TIMEOUT.as_millis() as u64,
          value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    body_timeout: u64,
    /// Maximum number of concurrent connections; further ones wait for --head-timeout, then get status 503
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

/// Runs `wattspan proxy` until a signal stops it.
pub fn proxy(options: &MeterOptions, args: &ProxyArgs) -> Result<u8, CliError> {
    if options.replay.is_some() || options.config.is_some() {
        let hint =
            "start a daemon: wattspand, or wattspand --replay FILE --socket PATH for a simulated machine";
        let message = format!("the proxy needs a daemon and does not measure in this process; {hint}");
        return Err(CliError::new(USAGE, message));
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
        hash_prompts: args.prompt_hash,
        account_timeout: Duration::from_millis(args.patience),
        use_known_paths: !args.only_paths,
        custom_paths: args.paths.clone(),
        max_connections: args.connections as usize,
        head_timeout: Duration::from_millis(args.head_timeout),
        body_timeout: Duration::from_millis(args.body_timeout),
    };
    let proxy = BoundProxy::new(settings, eprint_message)?;
    let counters = proxy.counters();
    eprint_message(&format!("listening at {}, forwarding to {}", proxy.address()?, args.upstream));
    eprint_message(&proxy.describe_annotation_policy()?);
    if let Some(limit) = descriptor_limit.filter(|most| *most < 2 * u64::from(args.connections)) {
        eprint_message(&format!(
            "the descriptor limit is {limit} (ulimit -n): about {} concurrent requests",
            limit / 2
        ));
    }
    proxy.serve(shutdown_signal())?;
    eprint_message(&counters.to_string());
    Ok(OK)
}

/// The server's process or control group, if given.
fn server_process(args: &ProxyArgs) -> Option<ServerProcess> {
    let process = args.upstream_pid.map(ServerProcess::Process);
    process.or_else(|| args.upstream_cgroup.clone().map(ServerProcess::ControlGroup))
}

/// The ID of the group that may connect to the Unix socket.
fn listen_gid(args: &ProxyArgs) -> Result<Option<u32>, CliError> {
    let is_tcp = matches!(args.listen, ListenAddress::Tcp(_));
    args.listen_group.as_deref().map(|name| listen_group_gid(name, is_tcp)).transpose()
}

/// The group whose members see the energy. Only the default group may be missing.
fn annotate_group_members(args: &ProxyArgs) -> Result<AnnotationGroup, CliError> {
    let name = &args.annotate_group;
    let group = AnnotationGroup::lookup(name);
    if group.exists() || name == DEFAULT_SPAN_GROUP {
        return Ok(group);
    }
    Err(CliError::new(USAGE, format!("--annotate-group {name}: no such group on this machine")))
}

/// Completes at the first SIGINT or SIGTERM. The second one exits the process directly.
async fn shutdown_signal() {
    let Ok(mut signals) = TerminationSignals::register() else {
        // Without handlers the signals keep their default action.
        return std::future::pending().await;
    };
    signals.next().await;
    eprint_message("stopping; running requests have 10 s to finish");
    tokio::spawn(async move {
        signals.next().await;
        std::process::exit(1);
    });
}

/// Raises the soft limit of open files to the hard one; each request uses two. Returns the current limit.
fn raise_descriptor_limit() -> Option<u64> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // If this fails, the unchanged limit is reported.
    let _ = setrlimit(Resource::Nofile, limit);
    getrlimit(Resource::Nofile).current
}
