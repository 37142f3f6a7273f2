//! `wattspan proxy`: energy for each request of an inference server.
//!
//! Owns the flags, and the end: a first signal lets the running requests end, a second one ends the program.

use std::time::Duration;

use super::ending::{OK, Trouble};
use super::{Meter, say};
use crate::client::Place;
use crate::http::Target;
use crate::proxy::{
    Annotate, FigureGroup, ListenAddress, Listening, ServerProcess, Settings, USUAL_PATIENCE, gid_of,
};

/// Where to listen, whom to forward to, and how to tell the energy.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Listen on HOST:PORT (port 0 takes a free one) or on a Unix socket, unix:PATH
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8088")]
    listen: ListenAddress,
    /// Let the members of this group open the Unix socket; its mode is 0660 then, else 0600
    #[arg(long, value_name = "GROUP")]
    listen_group: Option<String>,
    /// Forward to this server: http:// or https://, with or without a base path
    #[arg(long, value_name = "URL")]
    upstream: Target,
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
    #[arg(long, value_enum, value_name = "HOW", default_value_t = How::Headers)]
    annotate: How,
    /// Show the energy to clients of this group's members too, not only to this user and root
    #[arg(long, value_name = "GROUP", default_value = SPAN_GROUP)]
    annotate_group: String,
    /// Show the energy to every client, whatever its access and wherever it connects from
    #[arg(long)]
    annotate_all: bool,
    /// How requests that run at once share: equally, or by the tokens they stream
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Weight::Equal)]
    weight: Weight,
    /// A further path whose POST requests are inferences, known by its end; may be given again
    #[arg(long = "path", value_name = "PATH")]
    paths: Vec<String>,
    /// Only those of --path, not the known ones of OpenAI, Anthropic, Ollama and llama.cpp
    #[arg(long, requires = "paths")]
    only_paths: bool,
    /// How long a reply may wait for its account, at most
    #[arg(long, value_name = "MILLISECONDS", default_value_t = USUAL_PATIENCE.as_millis() as u64)]
    patience: u64,
    /// Connections at a time; more wait
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    connections: u32,
}

/// The group with span access, unless the daemon's configuration names another.
const SPAN_GROUP: &str = "wattspan";

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum How {
    Off,
    Headers,
    Usage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Weight {
    Equal,
    Tokens,
}

/// Serves until it is told to stop.
pub fn proxy(meter: &Meter, arguments: &Arguments) -> Result<u8, Trouble> {
    if meter.replay.is_some() || meter.config.is_some() {
        let mend = "start one: wattspand, or wattspand --replay FILE --socket PATH for a simulated machine";
        return Err(anyhow::anyhow!("the proxy asks a daemon and measures nothing itself; {mend}").into());
    }
    let raised = raise_descriptors();
    let settings = Settings {
        listen: arguments.listen.clone(),
        listen_group: listen_group(arguments)?,
        target: arguments.upstream.clone(),
        http2_only: arguments.upstream_http2,
        server: server(arguments),
        place: meter.socket.clone().map_or_else(Place::usual, Place::Named),
        annotate: match arguments.annotate {
            How::Off => Annotate::Off,
            How::Headers => Annotate::Headers,
            How::Usage => Annotate::Usage,
        },
        annotate_all: arguments.annotate_all,
        annotate_group: annotate_group(arguments)?,
        weigh: arguments.weight == Weight::Tokens,
        patience: Duration::from_millis(arguments.patience),
        known_paths: !arguments.only_paths,
        paths: arguments.paths.clone(),
        connections: arguments.connections as usize,
    };
    let listening = Listening::new(settings, say)?;
    let tally = listening.tally();
    say(&format!("listening at {}, forwarding to {}", listening.address()?, arguments.upstream));
    say(&listening.describe_figure_access()?);
    if let Some(most) = raised.filter(|most| *most < 2 * u64::from(arguments.connections)) {
        say(&format!("{most} descriptors are allowed (ulimit -n): about {} requests at a time", most / 2));
    }
    listening.serve(told_to_stop())?;
    say(&tally.to_string());
    Ok(OK)
}

/// The server's process, as far as it is named.
fn server(arguments: &Arguments) -> Option<ServerProcess> {
    let process = arguments.upstream_pid.map(ServerProcess::Process);
    process.or_else(|| arguments.upstream_cgroup.clone().map(ServerProcess::ControlGroup))
}

/// The number of the group that may open the Unix socket.
fn listen_group(arguments: &Arguments) -> Result<Option<u32>, Trouble> {
    let Some(name) = &arguments.listen_group else { return Ok(None) };
    if matches!(arguments.listen, ListenAddress::Tcp(_)) {
        return Err(anyhow::anyhow!("--listen-group is for a Unix socket; give --listen unix:PATH").into());
    }
    match gid_of(name) {
        Some(gid) => Ok(Some(gid)),
        None => Err(anyhow::anyhow!("--listen-group {name}: there is no such group on this machine").into()),
    }
}

/// The group whose members get figures. The usual one may be missing; one that was asked for may not.
fn annotate_group(arguments: &Arguments) -> Result<FigureGroup, Trouble> {
    let name = &arguments.annotate_group;
    let group = FigureGroup::named(name);
    if group.exists() || name == SPAN_GROUP {
        return Ok(group);
    }
    Err(anyhow::anyhow!("--annotate-group {name}: there is no such group on this machine").into())
}

/// SIGINT or SIGTERM. The second one ends the program by itself, since nobody waits for it any more.
async fn told_to_stop() {
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
    say("stopping; running requests have 10 s to end");
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        std::process::exit(1);
    });
}

/// Raises the soft limit of open files to the hard one; each request takes two. Gives what it is now.
fn raise_descriptors() -> Option<u64> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // What cannot be raised stays as it is, and is told.
    let _ = setrlimit(Resource::Nofile, limit);
    getrlimit(Resource::Nofile).current
}
