//! Apple silicon's energy counters through IOReport's group "Energy Model"; needs no privilege.
//!
//! Owns the subscription and the instants of its values. Drivers publish most counters in batches, up to 2.2 s apart, with a
//! time stamp in each raw element. That stamp is the reading's instant, so the energy of a batch is attributed to the time
//! between two batches. If a value changes while its stamp does not, the channel's stamps are ignored from then on. A missing
//! channel gives an invalid reading. `ioreport_channel` chooses the channels and their units.

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

/// Highest rate. The GPU's counter is updated at each sample.
const MAX_RATE_HZ: f64 = 20.0;
/// Lowest rate, for any cost of a sample.
const MIN_RATE_HZ: f64 = 1.0;

/// Largest age of the stamp of a live counter: several of the longest batches.
const MAX_STAMP_AGE_NS: u64 = 7_000_000_000;
/// Upper bound of a count's age at the read.
const STALENESS_NS: u64 = MAX_STAMP_AGE_NS;
/// Duration and interval of the probe of counters without a recent stamp: one of the longest batches.
const PROBE_TIMEOUT: Duration = Duration::from_millis(2_500);
const PROBE_INTERVAL: Duration = Duration::from_millis(100);

/// Selects the energy meters of the group "Energy Model" and their domains.
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
    /// The number of channels in the last sample.
    channel_count: usize,
    suspend: SuspendDetector,
    clock: Clock,
}

/// One channel with its state.
struct ChannelMeter {
    channel: SelectedChannel,
    /// Its index in a sample, and the ID of its element.
    position: Option<(usize, Option<(u64, u64)>)>,
    counter: Counter,
    /// The last count and its stamp.
    last: Option<(u64, u64)>,
    /// Whether its stamps are known to be wrong.
    has_wrong_stamps: bool,
}

impl IoReportSource {
    fn open(settings: &SourceSettings, clock: &Clock) -> Result<(IoReportSource, Vec<String>), String> {
        let calls = load_functions(settings.apple_library.as_deref())?;
        let report = calls.report?;
        let timebase = timebase(&calls).ok_or("the system does not report the length of a tick")?;
        let group = || ChannelGroup::copy(&calls, report, GROUP_NAME).ok_or(NO_GROUP_REASON);
        let listed = group()?;
        let ChannelSelection { channels, notes } = select_channels(&listed.channels());
        if channels.is_empty() {
            return Err(format!(
                "IOReport's group {GROUP_NAME:?} has no known energy channel: {}",
                notes.join("; ")
            ));
        }
        let kept: Vec<usize> = channels.iter().map(|channel| channel.index).collect();
        // A system that refuses a part of the group may accept the whole group.
        let subscription = match listed.subscribe(&kept) {
            Some(subscription) => subscription,
            None => group()?.subscribe_to_all().ok_or(REFUSED_REASON)?,
        };
        let meters = channels.into_iter().map(ChannelMeter::new).collect();
        let (suspend, clock) = (SuspendDetector::new(clock), clock.clone());
        Ok((IoReportSource { subscription, timebase, meters, channel_count: 0, suspend, clock }, notes))
    }

    /// For each counter: whether it has a recent stamp, or advances during the probe.
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

/// Whether a counter advanced between two readings, or shortly before the first one at `first_ns`.
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

/// Finds each meter's channel by its name, at the start and after a change of the list.
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

    /// Whether the sample has this channel at the known index.
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

    /// The instant of a count, from its element; 0 if it is unknown.
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
            // The counter is interrupted: before the change the time was an instant, afterwards it is a window.
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

const NO_GROUP_REASON: &str = "IOReport has no group \"Energy Model\"; Intel Macs, virtual machines and sandboxes \
                               have none; on Apple silicon, run a build for it and not an Intel build under Rosetta";

const REFUSED_REASON: &str = "IOReport refuses a subscription to its group \"Energy Model\", as it does in virtual machines and \
                       sandboxes; on a real Mac, please report it";
