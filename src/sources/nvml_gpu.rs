//! One NVIDIA board as a source: its counters, and its power within their steps.
//!
//! Owns the order of a read: first the power of all parts, then their counters, where those are due, with the clock around
//! them. Runs on a thread of its own like every source, so that a call which hangs in the driver delays nobody else.
//! Where the driver or the board went away no reading is valid, and the counters begin anew when it is back. Never
//! repeats an old value.

use std::ffi::OsString;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nvml_wrapper::error::NvmlError;

use crate::clock::Clock;
use crate::domain::{Domain, EnergyReading};

use super::call_cost::Cost;
use super::nvml_cadence::Cadence;
use super::nvml_channel::{Asked, Channel, Part};
use super::nvml_ffi::{Answer, Board, Field, MOST_FIELDS};
use super::nvml_link::Link;
use super::nvml_refusal::{is_gone, refused_board};
use super::{Opened, Source};

/// Power of the moment changes some 50 times a second, the counter 10 to 50 times; reading faster gives nothing new.
const MOST_HZ: f64 = 100.0;
/// All boards together: their threads' waking costs more than most of their calls.
const MOST_HZ_TOGETHER: f64 = 400.0;
/// However dear the calls are.
const LEAST_HZ: f64 = 1.0;

/// How long a counter that stands still is watched at the start, after the first look at it.
const WATCH: Duration = Duration::from_millis(300);
/// The pause between two looks: no shorter than this, ...
const LEAST_PAUSE: Duration = Duration::from_millis(5);
/// ... nor than so many times what a look takes, since the driver has locks that the board's real work needs too.
const PAUSE_FOR_EACH_LOOK: u32 = 4;

/// Which board it is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its place in NVML's order at the start: what its domains are called after.
    pub number: u32,
    /// What tells it from all others, for ever.
    pub uuid: String,
    /// How many boards the machine has.
    pub boards: usize,
}

/// A board that was opened, and what is to be said of it.
pub struct Found {
    /// The source.
    pub opened: Opened,
    /// What somebody may miss, and why it is not there.
    pub notes: Vec<String>,
}

struct Gpu {
    link: Link,
    channels: Vec<Channel>,
    /// When the counters are asked; the power is asked in every read.
    counting: Cadence,
    clock: Clock,
}

/// Opens the board and watches its counters for a moment. May take as long as the driver likes.
///
/// # Errors
/// Why it cannot be metered, in words for the administrator.
pub fn open(
    name: &'static str,
    library: OsString,
    identity: &Identity,
    clock: &Clock,
) -> Result<Found, String> {
    let board = Board::find(&library, &identity.uuid).map_err(|error| refused_board(&error))?;
    let (channels, notes) = survey(&board, identity)?;
    let (energy, power) =
        (Cost::of(|| drop(counts(&board, &channels))), Cost::of(|| drop(powers(&board, &channels))));
    let metered_by_power = channels.iter().any(|channel| channel.energy.is_none());
    // However dear, a counter is asked often enough not to be taken for lost.
    let dear_ns = energy.period_ns(identity.boards).min((1e9 / LEAST_HZ) as u64);
    let counting_ns = if metered_by_power { 0 } else { dear_ns };
    let most_hz = MOST_HZ.min(MOST_HZ_TOGETHER / identity.boards.max(1) as f64).max(LEAST_HZ);
    let max_rate_hz = (1e9 / power.period_ns(identity.boards).max(1) as f64).clamp(LEAST_HZ, most_hz);
    let domains = domains_of(name, &channels, identity);
    let mut gpu = Gpu {
        link: Link::new(library, identity.uuid.clone(), board),
        channels,
        // While it is watched each look asks: a counter that is left out is not seen to move.
        counting: Cadence::new(0),
        clock: clock.clone(),
    };
    let advanced = watch(&mut gpu, Duration::from_nanos(energy.wall_ns + power.wall_ns));
    // One that was never asked, so that the first reading of whoever takes the source is valid.
    gpu.counting = Cadence::new(counting_ns);
    let opened = Opened { name, source: Box::new(gpu), domains, cpu: None, max_rate_hz, advanced };
    Ok(Found { opened, notes })
}

/// Which parts the board has, and what is to be said of those that are left out.
fn survey(board: &Board, identity: &Identity) -> Result<(Vec<Channel>, Vec<String>), String> {
    let device = board.device();
    let product = device.name().unwrap_or_default();
    let gpu = Part::Gpu.name(identity.number);
    let Some(whole) = Channel::find(board, Part::Gpu) else {
        return Err(format!(
            "{product} shows neither an energy counter nor its power of the moment; a driver from 530 on may, and a \
             virtual GPU has none"
        ));
    };
    let (mut channels, mut notes) = (vec![whole], Vec::new());
    if let Some(module) = Channel::find(board, Part::Module) {
        // One board to a module is known of Grace Hopper only; elsewhere a module might be counted twice.
        if product.contains("GH200") {
            channels.push(module);
        } else {
            notes.push(format!(
                "{gpu}: {product} also shows its module, which may hold other boards: not counted"
            ));
        }
    }
    channels.extend(Channel::find(board, Part::Memory));
    if device.mig_mode().is_ok_and(|mode| mode.current != 0) {
        notes.push(format!(
            "{gpu}: MIG is on; NVML has energy for the whole board only, not for its instances"
        ));
    }
    Ok((channels, notes))
}

fn domains_of(source: &str, channels: &[Channel], identity: &Identity) -> Vec<Domain> {
    let number = identity.number;
    let module = channels.iter().any(|channel| channel.part == Part::Module);
    let parent = |part| match part {
        Part::Gpu => module.then(|| Part::Module.name(number)),
        Part::Module => None,
        Part::Memory => Some(Part::Gpu.name(number)),
    };
    let domain = |channel: &Channel| channel.domain(source, number, &identity.uuid, parent(channel.part));
    channels.iter().map(domain).collect()
}

/// Reads until every part's energy has grown, or for a while; says for each whether it has. A board draws watts at rest, so
/// that a live counter moves without a load. However long a look takes there is one at the end of the watch, too.
fn watch(gpu: &mut Gpu, look: Duration) -> Vec<bool> {
    let pause = (PAUSE_FOR_EACH_LOOK * look).clamp(LEAST_PAUSE, WATCH);
    let mut readings = vec![EnergyReading::default(); gpu.channels.len()];
    let mut first: Vec<Option<EnergyReading>> = vec![None; gpu.channels.len()];
    let mut advanced = vec![false; gpu.channels.len()];
    let mut until = None;
    loop {
        let began = Instant::now();
        gpu.read(&mut readings);
        for ((reading, first), advanced) in readings.iter().zip(&mut first).zip(&mut advanced) {
            if reading.valid {
                *advanced |= reading.energy_uj > first.get_or_insert(*reading).energy_uj;
            }
        }
        if !advanced.contains(&false) || began >= *until.get_or_insert_with(|| Instant::now() + WATCH) {
            return advanced;
        }
        sleep(pause);
    }
}

/// One answer for each part, in the order of the channels.
type Answers = [Answer; MOST_FIELDS];

/// Nobody was asked.
fn unasked() -> Answers {
    std::array::from_fn(|_| Err(NvmlError::NoData))
}

/// The counters of all parts, in millijoules.
fn counts(board: &Board, channels: &[Channel]) -> Result<Answers, NvmlError> {
    ask(board, channels, |channel| channel.energy, || board.device().total_energy_consumption())
}

/// The power of all parts, in milliwatts.
fn powers(board: &Board, channels: &[Channel]) -> Result<Answers, NvmlError> {
    ask(board, channels, |channel| channel.power, || board.device().power_usage().map(u64::from))
}

/// All fields in one call, and the figure of the whole board by its own call where that is how it is had.
fn ask(
    board: &Board,
    channels: &[Channel],
    asked: impl Fn(&Channel) -> Option<Asked>,
    call: impl Fn() -> Answer,
) -> Result<Answers, NvmlError> {
    let (mut fields, mut places, mut count) = ([Field { id: 0, scope: 0 }; MOST_FIELDS], [0; MOST_FIELDS], 0);
    let mut answers = unasked();
    for (place, channel) in channels.iter().enumerate() {
        match asked(channel) {
            Some(Asked::Field(field)) => {
                (fields[count], places[count]) = (field, place);
                count += 1;
            }
            Some(Asked::Call) => answers[place] = call(),
            None => {}
        }
    }
    if count > 0 {
        let mut told = unasked();
        board.ask(&fields[..count], &mut told)?;
        for (answer, place) in told.into_iter().zip(&places[..count]) {
            answers[*place] = answer;
        }
    }
    match answers.iter().position(|answer| answer.as_ref().is_err_and(is_gone)) {
        Some(place) => Err(std::mem::replace(&mut answers[place], Ok(0)).err().unwrap_or(NvmlError::Unknown)),
        None => Ok(answers),
    }
}

impl Gpu {
    /// One read; an error means that the board is gone.
    fn answer(&mut self, into: &mut [EnergyReading]) -> Result<Option<(u64, u64)>, NvmlError> {
        let now_ns = self.clock.now_ns();
        let Some(board) = self.link.board(now_ns) else { return Ok(None) };
        // A new start of the library may have taken long.
        let sensed_ns = self.clock.now_ns();
        let powers = powers(board, &self.channels)?;
        let before_ns = self.clock.now_ns();
        let counting = self.counting.due(before_ns);
        let counts = if counting { counts(board, &self.channels)? } else { unasked() };
        let after_ns = self.clock.now_ns();
        let at_ns = sensed_ns + (before_ns - sensed_ns) / 2;
        for (place, (channel, reading)) in self.channels.iter_mut().zip(into).enumerate() {
            channel.sense(&powers[place], at_ns);
            *reading = channel.reading(&counts[place], before_ns, after_ns);
        }
        self.link.hold();
        Ok(Some(if counting { (before_ns, after_ns) } else { (sensed_ns, before_ns) }))
    }
}

impl Source for Gpu {
    fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)> {
        into.fill(EnergyReading::default());
        match self.answer(into) {
            Ok(Some(window)) => Some(window),
            Ok(None) => None,
            Err(_) => {
                into.fill(EnergyReading::default());
                self.channels.iter_mut().for_each(Channel::interrupt);
                self.link.lose(self.clock.now_ns());
                None
            }
        }
    }
}
