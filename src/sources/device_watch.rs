//! Devices that appear after discovery: graphics cards that are plugged in, and drivers that are loaded later.
//!
//! A thread compares the list of devices with the last one when it is asked to, and opens the sources again if there is an
//! addition. Invariant: what is measured already is not measured a second time, and keeps its names. A device that returns is
//! found again by its own source. Each source is opened on a thread of its own, since a driver may hang.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::clock::Clock;
use crate::domain::{Absent, Domain, DomainKind};

use super::dedup::domain_selection::select_domains;
use super::device_list::DeviceList;
use super::parallel_open::{open_files, prepare};
use super::source::{Inventory, OpenProgress};
use super::source_settings::{AMDGPU, HWMON, INTELGPU, NVML};
use super::{OpenedSource, SourceSettings, nvml};

/// The interval between two comparisons.
const SCAN_INTERVAL_NS: u64 = 2_000_000_000;

/// A list is complete once it has not changed for this time: a driver adds the files of a card one after the other.
const SETTLE_TIME: Duration = Duration::from_millis(500);

/// The longest wait for a complete list, in steps of [`SETTLE_TIME`].
const MAX_SETTLE_STEPS: u32 = 20;

/// The delays between two searches for boards of which the driver has more than are measured.
const MIN_SEARCH_BACKOFF_NS: u64 = 2_000_000_000;
const MAX_SEARCH_BACKOFF_NS: u64 = 300_000_000_000;

/// A source that opens for longer is reported: its new devices are not detected meanwhile.
const OPEN_TIMEOUT_NS: u64 = 10_000_000_000;

/// The sources whose devices are files in sysfs.
const FILE_SOURCES: [&str; 3] = [AMDGPU, INTELGPU, HWMON];

/// What is measured when a comparison begins.
#[derive(Debug, Clone, Default)]
pub struct KnownDevices {
    /// All domains.
    pub domains: Vec<Domain>,
    /// The sources that are not open yet, which find their devices themselves.
    pub opening: Vec<String>,
    /// The reasons of what is not measured.
    pub absent: Vec<Absent>,
}

impl KnownDevices {
    /// The reasons that a new search of this source replaces: all but those that concern a measured domain.
    fn replaced_reasons(&self, source: &str) -> Vec<Absent> {
        let concerns = |absent: &Absent, domain: &Domain| {
            absent.reason.strip_prefix(&domain.name).is_some_and(|rest| rest.starts_with(": "))
        };
        let is_replaced = |absent: &&Absent| {
            absent.source == source && !self.of(source).any(|domain| concerns(absent, domain))
        };
        self.absent.iter().filter(is_replaced).cloned().collect()
    }

    fn of<'a>(&'a self, source: &'a str) -> impl Iterator<Item = &'a Domain> {
        self.domains.iter().filter(move |domain| domain.source == source)
    }

    fn has_device_of(&self, domain: &Domain) -> bool {
        self.of(&domain.source).any(|known| known.device == domain.device)
    }

    /// The domains of `opened` whose device is not known.
    fn select_unknown(&self, opened: OpenedSource) -> Option<OpenedSource> {
        let kept: Vec<bool> = opened.domains.iter().map(|domain| !self.has_device_of(domain)).collect();
        select_domains(opened, &kept)
    }

    /// Removes the domains of known devices, which may have been opened twice at the same time.
    pub fn drop_known(&self, found: &mut Inventory) {
        let opened = std::mem::take(&mut found.opened);
        found.opened = opened.into_iter().filter_map(|opened| self.select_unknown(opened)).collect();
    }
}

/// The thread that looks for new devices.
pub struct DeviceWatch {
    requests: SyncSender<KnownDevices>,
    progress: Receiver<OpenProgress>,
    due_ns: u64,
}

impl DeviceWatch {
    /// Starts the thread; `None` if no enabled source has devices that may appear. `devices`: those before discovery.
    ///
    /// # Errors
    /// The system cannot start a thread.
    pub fn start(settings: &SourceSettings, clock: &Clock, devices: DeviceList) -> io::Result<Option<Self>> {
        let (requests, received) = sync_channel::<KnownDevices>(1);
        let (sender, progress) = channel();
        let mut scanner = DeviceScanner::new(settings, clock, devices, sender);
        if scanner.sensors.is_empty() && scanner.boards.is_none() {
            return Ok(None);
        }
        let scan_each = move || received.iter().for_each(|known| scanner.scan(&known));
        thread::Builder::new().name("watch-devices".into()).spawn(scan_each)?;
        Ok(Some(Self { requests, progress, due_ns: clock.now_ns().saturating_add(SCAN_INTERVAL_NS) }))
    }

    /// The next new device. Begins a comparison if one is due, and does not wait for it.
    pub fn next_progress(
        &mut self,
        now_ns: u64,
        known: impl FnOnce() -> KnownDevices,
    ) -> Option<OpenProgress> {
        if let Ok(progress) = self.progress.try_recv() {
            return Some(progress);
        }
        if now_ns >= self.due_ns {
            self.due_ns = now_ns.saturating_add(SCAN_INTERVAL_NS);
            // The thread may still be busy with the last one.
            let _ = self.requests.try_send(known());
        }
        None
    }
}

/// One source of files.
struct FileScanner {
    /// The devices at its last opening.
    seen: BTreeSet<(String, PathBuf)>,
    opening: Option<Opening>,
}

/// A source that is being opened again.
struct Opening {
    thread: JoinHandle<()>,
    began_ns: u64,
    /// The reason that was sent when it took too long.
    reported: Option<Absent>,
}

/// The comparison of lists, on the thread.
struct DeviceScanner {
    settings: SourceSettings,
    clock: Clock,
    /// The enabled sources of files.
    sensors: BTreeMap<&'static str, FileScanner>,
    boards: Option<BoardScanner>,
    progress: Sender<OpenProgress>,
}

impl DeviceScanner {
    fn new(
        settings: &SourceSettings,
        clock: &Clock,
        devices: DeviceList,
        progress: Sender<OpenProgress>,
    ) -> Self {
        let is_enabled = |source: &str| settings.enabled.iter().any(|name| name == source);
        let files = FILE_SOURCES.into_iter().filter(|source| is_enabled(source));
        Self {
            settings: settings.clone(),
            clock: clock.clone(),
            sensors: files
                .map(|source| (source, FileScanner { seen: devices.sensors.clone(), opening: None }))
                .collect(),
            boards: is_enabled(NVML).then(|| BoardScanner::new(devices.boards)),
            progress,
        }
    }

    fn scan(&mut self, known: &KnownDevices) {
        let mut list = DeviceList::read(&self.settings.sysfs_root);
        let is_ready = |source: &str| !known.opening.iter().any(|name| name == source);
        let now_ns = self.clock.now_ns();
        let progress = &self.progress;
        let idle: BTreeSet<&str> = self
            .sensors
            .iter_mut()
            .filter_map(|(source, files)| files.poll(source, now_ns, progress).then_some(*source))
            .filter(|source| is_ready(source))
            .collect();
        let has_addition = |files: &FileScanner, list: &DeviceList| !list.sensors.is_subset(&files.seen);
        if idle.iter().any(|source| has_addition(&self.sensors[source], &list)) {
            list = self.settled_list(list);
        }
        for source in idle {
            let Some(files) = self.sensors.get_mut(source) else { continue };
            if has_addition(files, &list) {
                let (settings, clock) = (self.settings.clone(), self.clock.clone());
                let (source, known, progress) = (source.to_owned(), known.clone(), self.progress.clone());
                let open = move || open_new(&source, &settings, &clock, &known, &progress);
                // Without a thread, the addition is seen again by the next comparison.
                let Ok(thread) = thread::Builder::new().name("watch-files".into()).spawn(open) else {
                    continue;
                };
                files.opening = Some(Opening { thread, began_ns: now_ns, reported: None });
            }
            files.seen.clone_from(&list.sensors);
        }
        if let Some(boards) = self.boards.as_mut().filter(|_| is_ready(NVML)) {
            boards.scan(list.boards, known, &self.settings, &self.clock, &self.progress);
        }
    }

    /// The list once it has stayed the same for a while.
    fn settled_list(&self, mut list: DeviceList) -> DeviceList {
        for _ in 0..MAX_SETTLE_STEPS {
            thread::sleep(SETTLE_TIME);
            let next = DeviceList::read(&self.settings.sysfs_root);
            if next == list {
                break;
            }
            list = next;
        }
        list
    }
}

impl FileScanner {
    /// Whether the source can be opened in this comparison. Reports once that it has been opening for too long, and
    /// withdraws that when it is open.
    fn poll(&mut self, source: &str, now_ns: u64, progress: &Sender<OpenProgress>) -> bool {
        let Some(mut opening) = self.opening.take() else { return true };
        let send = |absent: Option<Absent>, outdated: Option<Absent>| {
            let mut found = Inventory::default();
            found.absent.extend(absent);
            let outdated = outdated.into_iter().collect();
            let _ =
                progress.send(OpenProgress { source: source.to_owned(), found, outdated, is_last: false });
        };
        if opening.thread.is_finished() {
            // The next comparison knows what this opening has found.
            if opening.reported.is_some() {
                send(None, opening.reported);
            }
            return false;
        }
        if opening.reported.is_none() && now_ns.saturating_sub(opening.began_ns) >= OPEN_TIMEOUT_NS {
            let reason = format!(
                "a device has not answered for {} s since another one was added; new devices of {source} are detected once \
                 it does: see the kernel's log",
                OPEN_TIMEOUT_NS / 1_000_000_000
            );
            opening.reported = Some(Absent { source: source.to_owned(), reason });
            send(opening.reported.clone(), None);
        }
        self.opening = Some(opening);
        false
    }
}

/// Opens a source again and sends what is new. Its reasons replace those of a source that had no device.
fn open_new(
    source: &str,
    settings: &SourceSettings,
    clock: &Clock,
    known: &KnownDevices,
    progress: &Sender<OpenProgress>,
) {
    let mut found = open_files(source, settings, clock);
    let opened = std::mem::take(&mut found.opened);
    found.opened = select_new(opened, known);
    found.opened.iter_mut().for_each(|opened| prepare(opened, settings));
    let is_first = known.of(source).next().is_none();
    let outdated = if is_first { known.replaced_reasons(source) } else { Vec::new() };
    if !is_first {
        found.absent.clear();
    }
    if is_first || !found.opened.is_empty() {
        let _ = progress.send(OpenProgress { source: source.to_owned(), found, outdated, is_last: false });
    }
}

/// Keeps the domains of new devices, under names that no other device of the source has.
fn select_new(opened: Vec<OpenedSource>, known: &KnownDevices) -> Vec<OpenedSource> {
    let mut taken: BTreeSet<String> = known.domains.iter().map(|domain| domain.name.clone()).collect();
    let mut selected = Vec::new();
    for mut opened in opened.into_iter().filter_map(|opened| known.select_unknown(opened)) {
        rename_numbered(&mut opened.domains, &taken);
        taken.extend(opened.domains.iter().map(|domain| domain.name.clone()));
        selected.push(opened);
    }
    selected
}

/// Gives a source whose device's number is taken the first free one: `intelgpu-0` and its part `intelgpu-0-package` become
/// `intelgpu-1` and `intelgpu-1-package`. Only numbers that count devices are replaced. A name that states what is measured
/// (`package-0`, `vdd-in`) stays: if it is taken, it may be the same energy.
fn rename_numbered(domains: &mut [Domain], taken: &BTreeSet<String>) {
    let stems: BTreeSet<String> = domains.iter().filter_map(device_stem).collect();
    for stem in stems {
        let has_prefix = |name: &str, prefix: &str| {
            name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        };
        let is_taken = |prefix: &str| taken.iter().any(|name| has_prefix(name, prefix));
        let Some((kind, _)) = stem.rsplit_once('-').filter(|_| is_taken(&stem)) else { continue };
        let Some(free) = (0_u32..).map(|number| format!("{kind}-{number}")).find(|name| !is_taken(name))
        else {
            continue;
        };
        let rename = |name: &mut String| {
            if has_prefix(name, &stem) {
                *name = format!("{free}{}", &name[stem.len()..]);
            }
        };
        for domain in domains.iter_mut() {
            rename(&mut domain.name);
            domain.parent.iter_mut().for_each(rename);
        }
    }
}

/// The part of a domain's name up to the number that counts devices: `intelgpu-0` of `intelgpu-0-package`.
fn device_stem(domain: &Domain) -> Option<String> {
    let counts_devices = match domain.source.as_str() {
        AMDGPU | INTELGPU => true,
        HWMON => {
            matches!(domain.kind, DomainKind::Rail | DomainKind::Gpu)
                || domain.kind == DomainKind::Psys && domain.name.starts_with("psu-")
        }
        _ => false,
    };
    let is_number = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let parts: Vec<&str> = domain.name.split('-').collect();
    let at = parts.iter().position(is_number).filter(|at| counts_devices && *at > 0)?;
    Some(parts[..=at].join("-"))
}

/// The comparison of the boards of NVIDIA's driver with those that are measured.
struct BoardScanner {
    listed: BTreeSet<String>,
    state: BoardState,
    retry_at_ns: u64,
    backoff_ns: u64,
    /// The search that runs.
    search: Option<JoinHandle<nvml::SearchResult>>,
}

/// Whether a search may find another board.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BoardState {
    /// Before the first comparison.
    Unknown,
    /// It may: the driver lists more boards than are measured.
    Incomplete,
    /// All are measured.
    Complete,
    /// NVML lists no more until the driver's list changes: see [`nvml::SearchResult`].
    Outdated,
}

impl BoardScanner {
    fn new(listed: BTreeSet<String>) -> Self {
        let (state, backoff_ns) = (BoardState::Unknown, MIN_SEARCH_BACKOFF_NS);
        Self { listed, state, retry_at_ns: 0, backoff_ns, search: None }
    }

    /// Begins a search if the driver lists a board that may be new and no search runs. A search that found fewer boards than
    /// the driver lists is repeated, unless NVML's list is the cause: their device files may appear later.
    fn scan(
        &mut self,
        listed: BTreeSet<String>,
        known: &KnownDevices,
        settings: &SourceSettings,
        clock: &Clock,
        progress: &Sender<OpenProgress>,
    ) {
        if let Some(search) = self.search.take_if(|search| search.is_finished()) {
            let result = search.join().unwrap_or_default();
            self.state = match result.is_list_outdated {
                true => BoardState::Outdated,
                false => BoardState::of_count(result.measured, self.listed.len()),
            };
            // The next comparison knows what this search has found.
            return;
        }
        let boards = nvml::KnownBoards { listed: listed.len(), ..known_boards(known) };
        if self.state == BoardState::Unknown {
            self.state = BoardState::of_count(boards.uuids.len(), self.listed.len());
        }
        let has_addition = !listed.is_subset(&self.listed);
        if has_addition || (self.state == BoardState::Outdated && listed != self.listed) {
            (self.state, self.retry_at_ns, self.backoff_ns) =
                (BoardState::Incomplete, 0, MIN_SEARCH_BACKOFF_NS);
        }
        self.listed = listed;
        let now_ns = clock.now_ns();
        let is_due = self.state == BoardState::Incomplete && now_ns >= self.retry_at_ns;
        if self.listed.is_empty() || !is_due || self.search.is_some() {
            return;
        }
        self.retry_at_ns = now_ns.saturating_add(self.backoff_ns);
        self.backoff_ns = (2 * self.backoff_ns).min(MAX_SEARCH_BACKOFF_NS);
        let outdated = known.replaced_reasons(NVML);
        self.search = spawn_search(boards, outdated, settings.clone(), clock.clone(), progress.clone()).ok();
    }
}

impl BoardState {
    fn of_count(measured: usize, listed: usize) -> Self {
        if measured >= listed { Self::Complete } else { Self::Incomplete }
    }
}

/// Starts a search. Its reasons replace the outdated ones.
fn spawn_search(
    boards: nvml::KnownBoards,
    mut outdated: Vec<Absent>,
    settings: SourceSettings,
    clock: Clock,
    progress: Sender<OpenProgress>,
) -> io::Result<JoinHandle<nvml::SearchResult>> {
    let send = move |found: Inventory, outdated: Vec<Absent>| {
        let _ = progress.send(OpenProgress { source: NVML.to_owned(), found, outdated, is_last: false });
    };
    let search = move || {
        let result = nvml::open_each(&settings, boards, &clock, |found| {
            send(found, std::mem::take(&mut outdated));
        });
        if !outdated.is_empty() {
            send(Inventory::default(), outdated);
        }
        result
    };
    thread::Builder::new().name("watch-nvml".into()).spawn(search)
}

/// The boards that are measured, by the UUIDs and the names of their domains.
fn known_boards(known: &KnownDevices) -> nvml::KnownBoards {
    let number = |domain: &Domain| domain.name.rsplit_once('-')?.1.parse().ok();
    nvml::KnownBoards {
        uuids: known.of(NVML).filter_map(|domain| domain.device.clone()).collect(),
        numbers: known.of(NVML).filter_map(number).collect(),
        listed: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Grade;

    fn domain(source: &str, name: &str, kind: DomainKind, parent: Option<&str>) -> Domain {
        Domain {
            name: name.into(),
            kind,
            source: source.into(),
            device: None,
            parent: parent.map(String::from),
            grade: Grade::Measured,
            ceiling_mw: None,
            latency_ns: 0,
            quantum_uj: 1,
        }
    }

    fn renamed(domains: &[Domain], taken: &[&str]) -> Vec<(String, Option<String>)> {
        let mut domains = domains.to_vec();
        rename_numbered(&mut domains, &taken.iter().map(|name| (*name).to_owned()).collect());
        domains.into_iter().map(|domain| (domain.name, domain.parent)).collect()
    }

    #[test]
    fn a_device_gets_the_first_free_number_with_all_its_parts() {
        let gpu = DomainKind::Gpu;
        let card = [
            domain(INTELGPU, "intelgpu-1", gpu, None),
            domain(INTELGPU, "intelgpu-1-package", gpu, Some("intelgpu-1")),
        ];
        let row = |name: &str, parent: Option<&str>| (name.to_owned(), parent.map(String::from));
        let names = |number: u32| {
            let card = format!("intelgpu-{number}");
            vec![row(&card, None), row(&format!("{card}-package"), Some(&card))]
        };
        assert_eq!(renamed(&card, &["intelgpu-0", "intelgpu-10"]), names(1));
        assert_eq!(renamed(&card, &["intelgpu-0", "intelgpu-1"]), names(2));
        // A part alone takes the number too.
        assert_eq!(renamed(&card, &["intelgpu-1-gt0", "intelgpu-0"]), names(2));
        let rail = [domain(HWMON, "ina226-0-vdd-12v", DomainKind::Rail, None)];
        assert_eq!(renamed(&rail, &["ina226-0-vdd-5v"]), [row("ina226-1-vdd-12v", None)]);
        let supply = [domain(HWMON, "psu-0", DomainKind::Psys, None)];
        assert_eq!(renamed(&supply, &["psu-0", "psu-1"]), [row("psu-2", None)]);
    }

    #[test]
    fn a_name_that_states_what_is_measured_stays() {
        for (name, kind) in [
            ("package-0", DomainKind::Package),
            ("vdd-in", DomainKind::Module),
            ("module-0", DomainKind::Module),
        ] {
            let rails = [domain(HWMON, name, kind, None)];
            assert_eq!(renamed(&rails, &[name]), [(name.to_owned(), None)]);
        }
    }

    #[test]
    fn what_a_known_device_shows_is_not_new_whatever_its_name() {
        let with_device = |name: &str, device: &str| Domain {
            device: Some(device.into()),
            ..domain(AMDGPU, name, DomainKind::Gpu, None)
        };
        let known = KnownDevices { domains: vec![with_device("amdgpu-0", "a")], ..KnownDevices::default() };
        assert!(known.has_device_of(&with_device("amdgpu-7", "a")));
        assert!(!known.has_device_of(&with_device("amdgpu-0", "b")));
        let other_source = Domain { source: INTELGPU.into(), ..with_device("intelgpu-0", "a") };
        assert!(!known.has_device_of(&other_source));
        assert_eq!(known_boards(&known).numbers, BTreeSet::new());
    }

    #[test]
    fn boards_are_known_by_uuid_and_number() {
        let board =
            |name: &str| Domain { device: Some("GPU-1".into()), ..domain(NVML, name, DomainKind::Gpu, None) };
        let known = KnownDevices {
            domains: vec![
                board("gpu-3"),
                board("gpu-memory-3"),
                domain(HWMON, "gpu-4", DomainKind::Gpu, None),
            ],
            ..KnownDevices::default()
        };
        let boards = known_boards(&known);
        assert_eq!((boards.uuids.len(), boards.numbers), (1, BTreeSet::from([3])));
    }

    #[test]
    fn a_search_replaces_the_reasons_of_its_source_but_those_of_measured_domains() {
        let absent = |source: &str, reason: &str| Absent { source: source.into(), reason: reason.into() };
        let known = KnownDevices {
            domains: vec![domain(NVML, "gpu-1", DomainKind::Gpu, None)],
            absent: vec![
                absent(NVML, "gpu-1: MIG is enabled"),
                absent(NVML, "gpu-10: NVML: the board is lost"),
                absent(HWMON, "no chip"),
            ],
            ..KnownDevices::default()
        };
        assert_eq!(known.replaced_reasons(NVML), [absent(NVML, "gpu-10: NVML: the board is lost")]);
    }
}
