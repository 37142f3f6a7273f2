//! `wattspan top`: shows the energy of the machine, its domains, models and open spans, twice a second.
//!
//! `meter_feed` has the connection, `top_state` the figures and settings, `top_view` the values of one frame, `draw` its
//! text. Without a terminal one frame is printed.

pub mod account_totals;
mod draw;
#[cfg(test)]
mod frame_tests;
pub mod group_table;
pub mod grouping;
pub mod meter_feed;
mod palette;
pub mod poll_thread;
mod power_history;
pub mod row_figures;
pub mod settings;
mod terminal_session;
#[cfg(test)]
pub mod test_machine;
mod text_columns;
pub mod top_state;
pub mod top_view;
pub mod unit;
mod values_after;

use std::io::{IsTerminal, stdin, stdout};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGTERM};
use wattspan_client::clock;

use crate::connect::MeterOptions;
use crate::exit_status::{CliError, OK, USAGE};
use crate::output;
use crate::terminal::{self, Terminal};
use draw::FrameSize;
use group_table::SortKey;
use grouping::Grouping;
use meter_feed::MeterFeed;
use palette::Palette;
use poll_thread::PollThread;
use settings::TopSettings;
use terminal_session::TerminalSession;
use top_state::TopState;
use top_view::TopView;
use unit::EnergyUnit;

/// Arguments of `wattspan top`.
#[derive(Debug, clap::Args)]
pub struct TopArgs {
    /// Print one frame and exit, as without a terminal
    #[arg(long)]
    once: bool,
    /// Group spans by this [default: model, or the settings' group]
    #[arg(long, short = 'g', value_name = "KEY", value_enum)]
    group: Option<Grouping>,
    /// Order of the groups [default: energy, or the settings' sort]
    #[arg(long, short = 's', value_name = "KEY", value_enum)]
    sort: Option<SortKey>,
    /// Unit of the energies [default: j, or the settings' unit]
    #[arg(long, short = 'u', value_name = "UNIT", value_enum)]
    unit: Option<EnergyUnit>,
}

/// The section of `wattspan top --help` about the settings.
pub const SETTINGS_HELP: &str = "\
Settings: $XDG_CONFIG_HOME/wattspan/top.toml, else ~/.config/wattspan/top.toml
  group = \"model\"         # model, name, user, operation
  sort = \"energy\"         # energy, requests, per-request, name
  unit = \"j\"              # j, wh, w, cost, co2
  cost_per_kwh = 0.30     # for the unit cost
  currency = \"EUR\"
  co2_g_per_kwh = 350     # for the unit co2

Press ? for the keys.";

/// The time between two frames.
const FRAME_INTERVAL: Duration = Duration::from_millis(500);

/// The width of a frame that goes to a pipe.
const PIPE_WIDTH: usize = 100;

/// A frame in JSON output.
#[derive(Serialize)]
struct FrameOutput<'a> {
    unix_ns: u64,
    meter: &'static str,
    #[serde(flatten)]
    view: &'a TopView,
}

/// Runs `wattspan top`.
pub fn top(options: &MeterOptions, args: &TopArgs) -> Result<u8, CliError> {
    let mut settings = TopSettings::load()?;
    settings.group = args.group.unwrap_or(settings.group);
    settings.sort = args.sort.unwrap_or(settings.sort);
    settings.unit = args.unit.unwrap_or(settings.unit);
    if let Some(key) = settings.unit.missing_setting(&settings.unit_factors()) {
        let text = format!("the unit needs {key} in the settings: see wattspan top --help");
        return Err(CliError::new(USAGE, text));
    }
    let mut feed = MeterFeed::open(options)?;
    let mut state = TopState::new(&settings);
    let is_interactive = stdin().is_terminal() && stdout().is_terminal() && !terminal::is_dumb();
    if options.json {
        return print_json_frames(&mut feed, &mut state, args.once);
    }
    if args.once || !is_interactive {
        feed.print_fallback_notice();
        poll_twice(&mut feed, &mut state)?;
        return print_frame(&state);
    }
    run_interactive(feed, &mut state)
}

/// Polls at the beginning and the end of an interval, so that the second frame has a power of each live counter.
fn poll_twice(feed: &mut MeterFeed, state: &mut TopState) -> Result<(), CliError> {
    state.apply(feed.poll()?);
    thread::sleep(FRAME_INTERVAL);
    state.apply(feed.poll()?);
    Ok(())
}

fn print_frame(state: &TopState) -> Result<u8, CliError> {
    let width = Terminal::of(&stdout()).width.unwrap_or(PIPE_WIDTH);
    let size = FrameSize { width, height: None };
    if let Some(view) = state.view() {
        let lines = draw::frame_lines(state, &view, size, Palette { colour: false });
        let lines = lines.iter().map(|line| line.to_string().trim_end().to_owned() + "\n");
        output::print_text(&lines.collect::<String>())?;
    }
    Ok(OK)
}

fn print_json_frames(feed: &mut MeterFeed, state: &mut TopState, once: bool) -> Result<u8, CliError> {
    poll_twice(feed, state)?;
    loop {
        if let Some(view) = state.view() {
            let output = FrameOutput { unix_ns: clock::unix_ns(), meter: feed.meter_kind(), view: &view };
            output::print_json(&output)?;
        }
        if once {
            return Ok(OK);
        }
        thread::sleep(FRAME_INTERVAL);
        state.apply(feed.poll()?);
    }
}

/// Draws frames until a key or a signal (TERM, HUP) ends the program.
fn run_interactive(mut feed: MeterFeed, state: &mut TopState) -> Result<u8, CliError> {
    // An error of the first poll is reported on the normal screen.
    state.apply(feed.poll()?);
    state.fallback_notice = feed.fallback_notice();
    let palette = Palette { colour: Terminal::of(&stdout()).colour };
    let terminated = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&terminated))?;
    }
    let mut polls = PollThread::start(feed);
    let mut session = TerminalSession::open()?;
    let mut due = Instant::now() + FRAME_INTERVAL;
    while !terminated.load(Ordering::Relaxed) && !session.is_closed()? {
        if let Some(view) = state.view() {
            session.draw(|size| draw::frame_lines(state, &view, size, palette))?;
        }
        if let Some(key) = session.wait_for_key(due)?
            && state.handle_key(key).is_break()
        {
            break;
        }
        if Instant::now() >= due {
            match polls.poll() {
                Some(Ok(update)) => state.apply(update),
                Some(Err(reason)) => state.set_unreachable(&reason, clock::unix_ns()),
                None => {}
            }
            due = Instant::now() + FRAME_INTERVAL;
        }
    }
    Ok(OK)
}
