//! `wattspan proxy`: energy for each request of an inference server.
//!
//! Owns the flags, and the end: a first signal lets the running requests end, a second one ends the program.

use std::net::SocketAddr;
use std::time::Duration;

use super::ending::{OK, Trouble};
use super::{Meter, say};
use crate::client::Place;
use crate::http::Target;
use crate::proxy::{Annotate, Listening, Settings, USUAL_PATIENCE};

/// Where to listen, whom to forward to, and how to tell the energy.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Listen here; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8088", value_parser = super::address::parse)]
    listen: SocketAddr,
    /// Forward to this server: http:// or https://, with or without a base path
    #[arg(long, value_name = "URL")]
    upstream: Target,
    /// Speak HTTP/2 to the server from the first byte (with https it is agreed on by itself)
    #[arg(long)]
    upstream_http2: bool,
    /// How the energy is told: not at all; in headers, trailers and comments of event streams; or in usage.energy too
    #[arg(long, value_enum, value_name = "HOW", default_value_t = How::Headers)]
    annotate: How,
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
        listen: arguments.listen,
        target: arguments.upstream.clone(),
        http2_only: arguments.upstream_http2,
        place: meter.socket.clone().map_or_else(Place::usual, Place::Named),
        annotate: match arguments.annotate {
            How::Off => Annotate::Off,
            How::Headers => Annotate::Headers,
            How::Usage => Annotate::Usage,
        },
        weigh: arguments.weight == Weight::Tokens,
        patience: Duration::from_millis(arguments.patience),
        known_paths: !arguments.only_paths,
        paths: arguments.paths.clone(),
        connections: arguments.connections as usize,
    };
    let listening = Listening::new(settings, say)?;
    let tally = listening.tally();
    say(&format!("listening at http://{}, forwarding to {}", listening.address()?, arguments.upstream));
    if let Some(most) = raised.filter(|most| *most < 2 * u64::from(arguments.connections)) {
        say(&format!("{most} descriptors are allowed (ulimit -n): about {} requests at a time", most / 2));
    }
    listening.serve(told_to_stop())?;
    say(&tally.to_string());
    Ok(OK)
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
