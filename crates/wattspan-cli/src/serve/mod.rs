//! `wattspan serve`: a live page of what `wattspan top` shows, with a history of 24 hours.
//!
//! `hub` polls the meter and distributes events, `live_state` has what they contain, `http_server` the connections,
//! `request_guard` the rules for requests. The server is an ordinary client of the meter: it shows what this user may see.

mod health;
mod http_server;
mod hub;
mod live_history;
mod live_pictures;
mod live_state;
mod page_message;
mod page_template;
mod request_guard;
mod request_log;

use std::env;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use wattspan_proxy::{ListenAddress, ListenSocket, ProxyListener};

use crate::connect::MeterOptions;
use crate::exit_status::{CliError, FAILURE, OK};
use crate::listen_group::listen_group_gid;
use crate::output;
use crate::top::meter_feed::MeterFeed;
use http_server::LiveServer;
use hub::Hub;
use request_guard::{RequestGuard, Token};

/// Arguments of `wattspan serve`.
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    /// Listen address: unix:PATH for a Unix socket, or HOST:PORT (port 0: any free port), which needs the token that is
    /// printed [default: unix:$XDG_RUNTIME_DIR/wattspan/serve.sock]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<ListenAddress>,
    /// Group that may connect to the Unix socket (mode 0660, else 0600); its members see what this user may see
    #[arg(long, value_name = "GROUP")]
    listen_group: Option<String>,
    /// Further name in the URL of the page, for example that of a reverse proxy; repeatable
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<String>,
}

/// Where the page is, in JSON output.
#[derive(Serialize)]
struct ServeOutput {
    listen: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
}

/// Runs `wattspan serve` until SIGINT, SIGTERM or SIGHUP.
pub fn serve(options: &MeterOptions, args: &ServeArgs) -> Result<u8, CliError> {
    let address = args.listen.clone().unwrap_or_else(default_address);
    let socket = ListenSocket::bind(&address, listen_gid(args, &address)?)?;
    let tcp_address = socket.tcp_address()?;
    let token = tcp_address.map(|_| Token::random()).transpose().map_err(anyhow::Error::from)?;
    let feed = MeterFeed::open(options)?;
    feed.print_fallback_notice();
    let listen = socket.describe()?;
    let url = token.as_ref().map(|token| format!("{listen}/?token={}", token.as_str()));
    let hub = Hub::start(feed)?;
    let server = Arc::new(LiveServer { hub, guard: RequestGuard::new(token, &args.allow_host) });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = ProxyListener::new(socket)?;
        // Also where the reader of standard output has gone: without the address, and its token, no browser finds the page.
        print_address(options, &address, ServeOutput { listen, url }).map_err(|error| {
            CliError::new(FAILURE, format!("cannot print the address of the page: {error}"))
        })?;
        if tcp_address.is_some_and(|address| !address.ip().is_loopback()) {
            let notice =
                "the connection is not encrypted: the token and all figures can be read on the network";
            output::eprint_message(notice);
        }
        tokio::select! {
            () = http_server::serve(listener, server) => {}
            () = ended_by_signal() => {}
        }
        Ok::<_, CliError>(())
    })?;
    runtime.shutdown_background();
    Ok(OK)
}

fn print_address(
    options: &MeterOptions,
    address: &ListenAddress,
    output: ServeOutput,
) -> Result<(), CliError> {
    if options.json {
        return output::print_json(&output);
    }
    let text = match (address, output.url) {
        // A TCP port that forwards to the socket would be open, without a token, to all users of the other machine.
        (ListenAddress::Unix(_), _) => format!(
            "serving at {}\n  \
             for a browser on this machine: wattspan serve --listen 127.0.0.1:8090 prints a URL with a token instead\n  \
             and on another machine:        the same, and there ssh -L 8090:127.0.0.1:8090 HOST; open the same URL\n",
            output.listen
        ),
        (ListenAddress::Tcp(_), url) => format!("open {}\n", url.unwrap_or_default()),
    };
    output::print_text(&text)
}

/// A socket in the user's own runtime directory, or in one of this name where there is none.
fn default_address() -> ListenAddress {
    let own = || env::temp_dir().join(format!("wattspan-{}", rustix::process::geteuid().as_raw()));
    let runtime = env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    ListenAddress::Unix(runtime.map_or_else(own, |dir| dir.join("wattspan")).join("serve.sock"))
}

fn listen_gid(args: &ServeArgs, address: &ListenAddress) -> Result<Option<u32>, CliError> {
    let is_tcp = matches!(address, ListenAddress::Tcp(_));
    args.listen_group.as_deref().map(|name| listen_group_gid(name, is_tcp)).transpose()
}

async fn ended_by_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let handlers = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
    let [Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)] = handlers else {
        // Without handlers the signals keep their default action.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
}
