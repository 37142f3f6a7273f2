//! Construction of a [`Service`]: sources, samplers, store, and the parts of a daemon.
//!
//! The samplers run from [`ServiceBuilder::start`] on; [`ServiceBuilder::build`] puts the service over them.

use std::io::{self, Write};
use std::time::Duration;

use wattspan_client::protocol::ProcessPrivileges;

use super::daemon_control::DaemonControl;
use super::durability::Durability;
use super::meter_service::{Service, ServiceParts};
use super::pending_sources::PendingSources;
use super::readings::ReadingCollector;
use super::startup::{ServiceSettings, StartupSettings};
use crate::clock::Clock;
use crate::domain::{Absent, Domain};
use crate::ring::Sample;
use crate::sampler;
use crate::sampler::recording::{self, Recording};
use crate::sources::replay::recorder::TraceRecorder;
use crate::sources::{self, DeviceWatch, Inventory, StartingSources, topology};
use crate::store::Store;
use crate::systemd::journal::LogFn;

/// How long an embedded meter waits for its sources. Its spans open at once, and the driver of a GPU without persistence
/// needs seconds.
const EMBEDDED_DISCOVERY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the daemon waits for its sources before it is ready. Most answer within milliseconds, and domains that exist at
/// startup are part of every span.
pub const DAEMON_DISCOVERY_TIMEOUT: Duration = Duration::from_millis(500);

/// A service that is not running yet.
pub struct ServiceBuilder {
    parts: ServiceParts,
}

impl ServiceBuilder {
    /// Discovers the sources and starts their samplers. `log` receives each later change of a domain's state.
    ///
    /// # Errors
    /// The system cannot start a thread.
    pub fn discover(settings: StartupSettings, clock: Clock, log: LogFn) -> io::Result<Self> {
        let found = sources::discover_within(&settings.sources, &clock, EMBEDDED_DISCOVERY_TIMEOUT);
        Self::start(settings, found, clock, log)
    }

    /// Starts the samplers of sources that are already discovered.
    ///
    /// # Errors
    /// The system cannot start a thread.
    pub fn start(settings: StartupSettings, found: Inventory, clock: Clock, log: LogFn) -> io::Result<Self> {
        let start = |opened| sampler::start(opened, &settings.sampler, clock.clone());
        let samplers = found.opened.into_iter().map(start).collect::<io::Result<Vec<_>>>()?;
        let mut collector = ReadingCollector::new(samplers, found.duplicates, log);
        let watch = match found.devices {
            Some(devices) => DeviceWatch::start(&settings.sources, &clock, devices)?,
            None => None,
        };
        if found.starting.is_some() || watch.is_some() {
            let packages = topology::physical_packages(&settings.sources.sysfs_root);
            collector.add_pending_sources(PendingSources {
                starting: found.starting.unwrap_or_else(StartingSources::none),
                watch,
                settings: settings.sampler,
                clock: clock.clone(),
                packages,
            });
        }
        collector.wait_for_first_readings(&clock);
        Ok(Self::with_collector(collector, found.absent, settings.service, clock))
    }

    /// Over a collector whose samplers run.
    pub(crate) fn with_collector(
        collector: ReadingCollector,
        absent: Vec<Absent>,
        settings: ServiceSettings,
        clock: Clock,
    ) -> Self {
        let mut collector = collector;
        collector.set_assumptions(settings.assumptions.clone());
        let (durability, daemon) = (None, None);
        let parts =
            ServiceParts { collector, absent, settings, clock, durability, daemon, is_recording: false };
        Self { parts }
    }

    /// Keeps every final account in this store. `log` receives a message when the store stalls and when it recovers.
    #[must_use]
    pub fn store(mut self, store: Store, log: fn(&str)) -> Self {
        self.parts.durability = Some(Durability::new(store, log, self.parts.clock.now_ns()));
        self
    }

    /// Adds the parts of a daemon: reload, notifications to the service manager, and the privileges to report.
    #[must_use]
    pub fn daemon(mut self, control: DaemonControl, privileges: ProcessPrivileges) -> Self {
        self.parts.daemon = Some((control, privileges));
        self
    }

    /// The streams of all samplers, for a recording. The samplers run at the full rate from here on.
    pub fn record(&mut self) -> Vec<sampler::SampleStream> {
        self.parts.is_recording = true;
        self.parts.collector.set_fixed_rate(true);
        self.parts.collector.set_sampling_rate(true);
        self.parts.collector.recording_feeds()
    }

    /// Records the readings of all samplers, at the full rate, as a trace for `--replay`.
    ///
    /// # Errors
    /// The header cannot be written, or the system cannot start a thread.
    pub fn start_recording(&mut self, out: impl Write + Send + 'static) -> io::Result<Recording> {
        let feeds = self.record();
        let domains: Vec<Domain> = feeds.iter().flat_map(|feed| feed.domains.iter().cloned()).collect();
        let mut domain_offsets = vec![0];
        domain_offsets.extend(feeds.iter().scan(0, |first, feed| {
            *first += feed.domains.len();
            Some(*first)
        }));
        let mut recorder = TraceRecorder::new(out, &domains, false)?;
        let sink = move |ring: usize, sample: &Sample| {
            recorder.record(domain_offsets[ring], sample.before_ns, sample.after_ns, &sample.readings)
        };
        recording::start(feeds.into_iter().map(|feed| feed.ring).collect(), sink)
    }

    /// All domains, also those of sources that are still starting, in a fixed order.
    pub fn domain_names(&self) -> Vec<&str> {
        self.parts.collector.names().collect()
    }

    /// The sources that are not available, with reasons.
    pub fn absent(&self) -> &[Absent] {
        &self.parts.absent
    }

    /// # Errors
    /// The kernel's random device cannot be opened.
    pub fn build(self) -> io::Result<Service> {
        Service::new(self.parts)
    }
}
