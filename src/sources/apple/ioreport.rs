//! Apple silicon's own energy counters, through IOReport's group "Energy Model"; no root needed.
//!
//! Owns the subscription and when its values were true. The drivers publish most counters in batches, up to 2.2 s apart,
//! and say in each raw element when they did: that stamp is the reading's instant, so that what lies between two batches
//! is known to lie there, and nowhere is a batch taken for the power of the moment. A stamp that stands still while the
//! number moves is no stamp, and is never believed again. A channel that vanishes leaves an invalid reading, and one that
//! stands still stands still: nothing is repeated under a new time. Where the channels are and what they count is
//! `ioreport_channel`'s to say.

pub use crate::sources::source_settings::IOREPORT as NAME;

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::domain::EnergyReading;
use crate::sources::call_cost::CallCost;
use crate::sources::counter::{Counter, CounterSpec, plausible_ceiling_mw};
use crate::sources::suspend_detector::SuspendDetector;
use crate::sources::{Inventory, OpenedSource, Source, SourceSettings};

use super::function_loader::load_functions;
use super::ioreport_channel::{ChannelSelection, RawElement, SelectedChannel, Timebase, select_channels};
use super::ioreport_ffi::{ChannelGroup, IoReportSample, IoReportSubscription, timebase};

/// The group of channels that count energy.
const GROUP_NAME: &str = "Energy Model";

/// The graphics' counter is published whenever it is asked for; more often than this nobody needs it.
const MAX_RATE_HZ: f64 = 20.0;
/// However dear a sample is.
const MIN_RATE_HZ: f64 = 1.0;

/// A stamp that is no older shows a counter that is published now: several batches of the longest kind.
const MAX_STAMP_AGE_NS: u64 = 7_000_000_000;
/// How old a count may be when it is read, for its plausibility: likewise.
const STALENESS_NS: u64 = MAX_STAMP_AGE_NS;
/// How long a counter without a recent stamp is watched at the start: one batch of the longest kind, and how often.
const PROBE_TIMEOUT: Duration = Duration::from_millis(2_500);
const PROBE_INTERVAL: Duration = Duration::from_millis(100);

/// Opens the group.
pub fn open(settings: &SourceSettings, clock: &Clock) -> Inventory {
    let mut found = Inventory::default();
    match IoReportSource::open(settings, clock) {
        Ok((mut source, notes)) => {
            notes.into_iter().for_each(|note| found.add_absent(NAME, note));
            let cost = CallCost::measure(|| drop(source.subscription.sample()));
            let max_rate_hz = (1e9 / cost.min_period_ns(1).max(1) as f64).clamp(MIN_RATE_HZ, MAX_RATE_HZ);
            let advanced = source.probe();
            found.opened.push(OpenedSource {
                name: NAME,
                domains: source.meters.iter().map(|meter| meter.channel.domain(NAME)).collect(),
                source: Box::new(source),
                cpu: None,
                max_rate_hz,
                advanced,
            });
        }
        Err(reason) => found.add_absent(NAME, reason),
    }
    found
}

struct IoReportSource {
    subscription: IoReportSubscription,
    timebase: Timebase,
    meters: Vec<ChannelMeter>,
    /// How many channels a sample has while nothing changed.
    channel_count: usize,
    suspend: SuspendDetector,
    clock: Clock,
}

/// One channel and its history.
struct ChannelMeter {
    channel: SelectedChannel,
    /// Where it is in a sample, and what its element is called there.
    position: Option<(usize, Option<(u64, u64)>)>,
    counter: Counter,
    /// The last count and its stamp.
    last: Option<(u64, u64)>,
    /// Its stamps were seen to be wrong.
    has_wrong_stamps: bool,
}

impl IoReportSource {
    fn open(settings: &SourceSettings, clock: &Clock) -> Result<(IoReportSource, Vec<String>), String> {
        let calls = load_functions(settings.apple_library.as_deref())?;
        let report = calls.report?;
        let timebase = timebase(&calls).ok_or("the system does not tell the length of a tick")?;
        let group = || ChannelGroup::copy(&calls, report, GROUP_NAME).ok_or(NO_GROUP_REASON);
        let listed = group()?;
        let ChannelSelection { channels, notes } = select_channels(&listed.channels());
        if channels.is_empty() {
            return Err(format!(
                "IOReport's group {GROUP_NAME:?} has no meter that is known here: {}",
                notes.join("; ")
            ));
        }
        let kept: Vec<usize> = channels.iter().map(|channel| channel.index).collect();
        // Should a system not take a part of the group, it may take the whole.
        let subscription = match listed.subscribe(&kept) {
            Some(subscription) => subscription,
            None => group()?.subscribe_to_all().ok_or(REFUSED_REASON)?,
        };
        let meters = channels.into_iter().map(ChannelMeter::new).collect();
        let (suspend, clock) = (SuspendDetector::new(clock), clock.clone());
        Ok((IoReportSource { subscription, timebase, meters, channel_count: 0, suspend, clock }, notes))
    }

    /// Which counters are published: those with a recent stamp, and those that move while they are watched.
    fn probe(&mut self) -> Vec<bool> {
        let deadline = Instant::now() + PROBE_TIMEOUT;
        let mut readings = vec![EnergyReading::default(); self.meters.len()];
        self.read(&mut readings);
        let firsts = readings.clone();
        let now_ns = self.clock.now_ns();
        loop {
            let advanced: Vec<bool> =
                readings.iter().zip(&firsts).map(|(now, first)| is_published(now, first, now_ns)).collect();
            if !advanced.contains(&false) || Instant::now() >= deadline {
                return advanced;
            }
            sleep(PROBE_INTERVAL);
            self.read(&mut readings);
        }
    }
}

/// Whether a counter showed signs of life between two readings, or shortly before the first, which was at `first_ns`.
fn is_published(now: &EnergyReading, first: &EnergyReading, first_ns: u64) -> bool {
    let recent = first.stamp_ns != 0 && first_ns.saturating_sub(first.stamp_ns) <= MAX_STAMP_AGE_NS;
    let moved = now.valid && (now.energy_uj > first.energy_uj || now.stamp_ns > first.stamp_ns);
    (first.valid && recent) || moved
}

impl Source for IoReportSource {
    fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)> {
        let before_ns = self.clock.now_ns();
        let sample = self.subscription.sample();
        let after_ns = self.clock.now_ns();
        if self.suspend.has_suspended() {
            self.meters.iter_mut().for_each(ChannelMeter::interrupt);
        }
        let Some(sample) = sample else {
            self.meters.iter_mut().for_each(ChannelMeter::interrupt);
            into.fill(EnergyReading::default());
            return None;
        };
        if sample.len() != self.channel_count || !self.meters.iter().all(|meter| meter.is_in(&sample)) {
            self.channel_count = sample.len();
            locate_channels(&mut self.meters, &sample);
        }
        for (meter, reading) in self.meters.iter_mut().zip(into) {
            *reading = meter.read(&sample, self.timebase, before_ns, after_ns);
        }
        None
    }
}

/// Finds each meter's channel by its name: at the start, and whenever the list is not what it was.
fn locate_channels(meters: &mut [ChannelMeter], sample: &IoReportSample<'_>) {
    meters.iter_mut().for_each(|meter| meter.position = None);
    for at in 0..sample.len() {
        let Some(channel) = sample.channel(at) else { continue };
        let named = meters.iter_mut().find(|meter| {
            let same =
                meter.channel.channel_name == channel.name && meter.channel.unit_label == channel.unit_label;
            meter.position.is_none() && same && channel.is_simple
        });
        if let Some(meter) = named {
            meter.position = Some((at, sample.element(at).map(|element| element.id)));
        }
    }
}

impl ChannelMeter {
    fn new(channel: SelectedChannel) -> Self {
        let shape = CounterSpec {
            unit: channel.unit,
            modulus: 1 << 64,
            ceiling_mw: plausible_ceiling_mw(channel.kind),
            staleness_ns: STALENESS_NS,
            range_uj: u64::MAX,
        };
        Self { channel, position: None, counter: Counter::new(shape), last: None, has_wrong_stamps: false }
    }

    /// Whether the sample still has this channel where it was.
    fn is_in(&self, sample: &IoReportSample<'_>) -> bool {
        self.position.is_some_and(|(at, id)| sample.element(at).map(|element| element.id) == id)
    }

    fn read(
        &mut self,
        sample: &IoReportSample<'_>,
        timebase: Timebase,
        before_ns: u64,
        after_ns: u64,
    ) -> EnergyReading {
        let shown = self.position.and_then(|(at, _)| Some((sample.value(at)?, sample.element(at))));
        let Some((count, element)) = shown else {
            self.interrupt();
            return EnergyReading::default();
        };
        let stamp_ns = self.stamp_ns(count, element, timebase, after_ns);
        EnergyReading { stamp_ns, ..self.counter.advance(count, before_ns, after_ns) }
    }

    /// The instant of a count, by its element; 0 where nothing tells it.
    fn stamp_ns(
        &mut self,
        count: u64,
        element: Option<RawElement>,
        timebase: Timebase,
        after_ns: u64,
    ) -> u64 {
        let published_ns = element.and_then(|element| timebase.instant_ns(element.ticks, after_ns));
        let stamp_ns = published_ns.filter(|_| !self.has_wrong_stamps).unwrap_or(0);
        let wrong = match self.last.replace((count, stamp_ns)) {
            Some((last, last_ns)) => {
                last_ns != 0 && (stamp_ns < last_ns || (stamp_ns == last_ns && count != last))
            }
            None => false,
        };
        if wrong {
            // Neither side of the change may be joined to the other: one is an instant, the other a time between reads.
            self.interrupt();
            self.has_wrong_stamps = true;
            return 0;
        }
        stamp_ns
    }

    fn interrupt(&mut self) {
        self.counter.interrupt();
        self.last = None;
    }
}

const NO_GROUP_REASON: &str = "IOReport has no group \"Energy Model\" here; Intel's Macs have none, nor have virtual machines and \
                        sandboxes; on Apple silicon, run a wattspan that is built for it, not Intel's under Rosetta";

const REFUSED_REASON: &str = "IOReport refuses a subscription to its group \"Energy Model\", as it does in virtual machines and \
                       sandboxes; on a real Mac, please report it";
