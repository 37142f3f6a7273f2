//! Apple silicon's own energy counters, through IOReport's group "Energy Model"; no root needed.
//!
//! Owns the subscription and when its values were true. The drivers publish most counters in batches, up to 2.2 s apart,
//! and say in each raw element when they did: that stamp is the reading's instant, so that what lies between two batches
//! is known to lie there, and nowhere is a batch taken for the power of the moment. A stamp that stands still while the
//! number moves is no stamp, and is never believed again. A channel that vanishes leaves an invalid reading, and one that
//! stands still stands still: nothing is repeated under a new time. Where the channels are and what they count is
//! `ioreport_channel`'s to say.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::domain::EnergyReading;

use super::call_cost::Cost;
use super::counter::{Counter, Shape, plausible_ceiling_mw};
use super::ioreport_channel::{Choice, Chosen, choose};
use super::ioreport_element::{Element, Timebase};
use super::ioreport_ffi::{Group, Sample, Subscription, timebase};
use super::suspend::Suspend;
use super::{Inventory, Opened, Settings, Source, apple};

/// The mechanism's name.
pub const NAME: &str = "ioreport";

/// The group of channels that count energy.
const GROUP: &str = "Energy Model";

/// The graphics' counter is published whenever it is asked for; more often than this nobody needs it.
const MOST_HZ: f64 = 20.0;
/// However dear a sample is.
const LEAST_HZ: f64 = 1.0;

/// A stamp that is no older shows a counter that is published now: several batches of the longest kind.
const RECENT_NS: u64 = 7_000_000_000;
/// How old a count may be when it is read, for its plausibility: likewise.
const STALENESS_NS: u64 = RECENT_NS;
/// How long a counter without a recent stamp is watched at the start: one batch of the longest kind, and how often.
const PATIENCE: Duration = Duration::from_millis(2_500);
const LOOK: Duration = Duration::from_millis(100);

/// Opens the group.
pub fn open(settings: &Settings, clock: &Clock) -> Inventory {
    let mut found = Inventory::default();
    match IoReport::open(settings, clock) {
        Ok((mut source, notes)) => {
            notes.into_iter().for_each(|note| found.miss(NAME, note));
            let cost = Cost::of(|| drop(source.subscription.sample()));
            let max_rate_hz = (1e9 / cost.period_ns(1).max(1) as f64).clamp(LEAST_HZ, MOST_HZ);
            let advanced = source.watch();
            found.opened.push(Opened {
                name: NAME,
                domains: source.meters.iter().map(|meter| meter.chosen.domain(NAME)).collect(),
                source: Box::new(source),
                cpu: None,
                max_rate_hz,
                advanced,
            });
        }
        Err(reason) => found.miss(NAME, reason),
    }
    found
}

struct IoReport {
    subscription: Subscription,
    timebase: Timebase,
    meters: Vec<Meter>,
    /// How many channels a sample has while nothing changed.
    length: usize,
    suspend: Suspend,
    clock: Clock,
}

/// One channel and its history.
struct Meter {
    chosen: Chosen,
    /// Where it is in a sample, and what its element is called there.
    place: Option<(usize, Option<(u64, u64)>)>,
    counter: Counter,
    /// The last count and its stamp.
    last: Option<(u64, u64)>,
    /// Its stamps were seen to be wrong.
    unstamped: bool,
}

impl IoReport {
    fn open(settings: &Settings, clock: &Clock) -> Result<(IoReport, Vec<String>), String> {
        let calls = apple::calls(settings)?;
        let report = calls.report?;
        let timebase = timebase(&calls).ok_or("the system does not tell the length of a tick")?;
        let group = || Group::copy(&calls, report, GROUP).ok_or(NO_GROUP);
        let listed = group()?;
        let Choice { chosen, notes } = choose(&listed.channels());
        if chosen.is_empty() {
            return Err(format!(
                "IOReport's group {GROUP:?} has no meter that is known here: {}",
                notes.join("; ")
            ));
        }
        let kept: Vec<usize> = chosen.iter().map(|chosen| chosen.index).collect();
        // Should a system not take a part of the group, it may take the whole.
        let subscription = match listed.subscribe(&kept) {
            Some(subscription) => subscription,
            None => group()?.subscribe_to_all().ok_or(REFUSED)?,
        };
        let meters = chosen.into_iter().map(Meter::new).collect();
        let (suspend, clock) = (Suspend::new(clock), clock.clone());
        Ok((IoReport { subscription, timebase, meters, length: 0, suspend, clock }, notes))
    }

    /// Which counters are published: those with a recent stamp, and those that move while they are watched.
    fn watch(&mut self) -> Vec<bool> {
        let deadline = Instant::now() + PATIENCE;
        let mut readings = vec![EnergyReading::default(); self.meters.len()];
        self.read(&mut readings);
        let firsts = readings.clone();
        let now_ns = self.clock.now_ns();
        loop {
            let advanced: Vec<bool> =
                readings.iter().zip(&firsts).map(|(now, first)| published(now, first, now_ns)).collect();
            if !advanced.contains(&false) || Instant::now() >= deadline {
                return advanced;
            }
            sleep(LOOK);
            self.read(&mut readings);
        }
    }
}

/// Whether a counter showed signs of life between two readings, or shortly before the first, which was at `first_ns`.
fn published(now: &EnergyReading, first: &EnergyReading, first_ns: u64) -> bool {
    let recent = first.stamp_ns != 0 && first_ns.saturating_sub(first.stamp_ns) <= RECENT_NS;
    let moved = now.valid && (now.energy_uj > first.energy_uj || now.stamp_ns > first.stamp_ns);
    (first.valid && recent) || moved
}

impl Source for IoReport {
    fn read(&mut self, into: &mut [EnergyReading]) -> Option<(u64, u64)> {
        let before_ns = self.clock.now_ns();
        let sample = self.subscription.sample();
        let after_ns = self.clock.now_ns();
        if self.suspend.slept() {
            self.meters.iter_mut().for_each(Meter::interrupt);
        }
        let Some(sample) = sample else {
            self.meters.iter_mut().for_each(Meter::interrupt);
            into.fill(EnergyReading::default());
            return None;
        };
        if sample.len() != self.length || !self.meters.iter().all(|meter| meter.is_there(&sample)) {
            self.length = sample.len();
            locate(&mut self.meters, &sample);
        }
        for (meter, reading) in self.meters.iter_mut().zip(into) {
            *reading = meter.read(&sample, self.timebase, before_ns, after_ns);
        }
        None
    }
}

/// Finds each meter's channel by its name: at the start, and whenever the list is not what it was.
fn locate(meters: &mut [Meter], sample: &Sample<'_>) {
    meters.iter_mut().for_each(|meter| meter.place = None);
    for at in 0..sample.len() {
        let Some(channel) = sample.channel(at) else { continue };
        let named = meters.iter_mut().find(|meter| {
            let same = meter.chosen.channel == channel.name && meter.chosen.label == channel.unit;
            meter.place.is_none() && same && channel.simple
        });
        if let Some(meter) = named {
            meter.place = Some((at, sample.element(at).map(|element| element.id)));
        }
    }
}

impl Meter {
    fn new(chosen: Chosen) -> Self {
        let shape = Shape {
            unit: chosen.unit,
            modulus: 1 << 64,
            ceiling_mw: plausible_ceiling_mw(chosen.kind),
            staleness_ns: STALENESS_NS,
            range_uj: u64::MAX,
        };
        Self { chosen, place: None, counter: Counter::new(shape), last: None, unstamped: false }
    }

    /// Whether the sample still has this channel where it was.
    fn is_there(&self, sample: &Sample<'_>) -> bool {
        self.place.is_some_and(|(at, id)| sample.element(at).map(|element| element.id) == id)
    }

    fn read(
        &mut self,
        sample: &Sample<'_>,
        timebase: Timebase,
        before_ns: u64,
        after_ns: u64,
    ) -> EnergyReading {
        let shown = self.place.and_then(|(at, _)| Some((sample.value(at)?, sample.element(at))));
        let Some((count, element)) = shown else {
            self.interrupt();
            return EnergyReading::default();
        };
        let stamp_ns = self.stamp(count, element, timebase, after_ns);
        EnergyReading { stamp_ns, ..self.counter.advance(count, before_ns, after_ns) }
    }

    /// The instant of a count, by its element; 0 where nothing tells it.
    fn stamp(&mut self, count: u64, element: Option<Element>, timebase: Timebase, after_ns: u64) -> u64 {
        let told_ns = element.and_then(|element| timebase.instant_ns(element.ticks, after_ns));
        let stamp_ns = told_ns.filter(|_| !self.unstamped).unwrap_or(0);
        let wrong = match self.last.replace((count, stamp_ns)) {
            Some((last, last_ns)) => {
                last_ns != 0 && (stamp_ns < last_ns || (stamp_ns == last_ns && count != last))
            }
            None => false,
        };
        if wrong {
            // Neither side of the change may be joined to the other: one is an instant, the other a time between reads.
            self.interrupt();
            self.unstamped = true;
            return 0;
        }
        stamp_ns
    }

    fn interrupt(&mut self) {
        self.counter.interrupt();
        self.last = None;
    }
}

const NO_GROUP: &str = "IOReport has no group \"Energy Model\" here; Intel's Macs have none, nor have virtual machines and \
                        sandboxes; on Apple silicon, run a wattspan that is built for it, not Intel's under Rosetta";

const REFUSED: &str = "IOReport refuses a subscription to its group \"Energy Model\", as it does in virtual machines and \
                       sandboxes; on a real Mac, please report it";
