//! NVML through a shared library with its symbols, on boards whose power is known.
//!
//! Discovery, reads and attribution are the program's own. The test advances the clock of library and reader, so that
//! nothing depends on the speed of this machine. Real threads run only where calls hang.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::fake_nvml::{Driver, GPU_IS_LOST, Knob, LIBRARY_MISMATCH, Library, UNKNOWN};
use crate::ground_truth::{self, GroundTruth};
use crate::support::wait_until;
use rustix::process::{Pid, Signal};
use wattspan::attribution::{self, Attributor, NewSpan};
use wattspan::clock::Clock;
use wattspan::config::Config;
use wattspan::domain::{Domain, DomainKind, EnergyReading, Grade, Liveness};
use wattspan::embedded::EmbeddedMeter;
use wattspan::sampler::counter_profile::CounterProfile;
use wattspan::sampler::{self, Sampler};
use wattspan::sources::dedup::domain_tree;
use wattspan::sources::replay::power_profile::PowerProfile;
use wattspan::sources::{Inventory, OpenedSource, SourceSettings, discover, discover_within};
use wattspan_client::Client;
use wattspan_client::account::{Account, Share};

const MS: u64 = 1_000_000;
const S: u64 = 1_000_000_000;
/// The start of the manual clock.
const START_NS: u64 = 100 * S;
/// Alternating 70 W and 400 W, the default curve of [`Library::new`].
const USUAL: [(u64, u64); 2] = [(300 * MS, 70_000), (200 * MS, 400_000)];
const OTHER: [(u64, u64); 3] = [(110 * MS, 300_000), (30 * MS, 40_000), (77 * MS, 150_000)];

/// A machine whose clock stands still until the test advances it.
struct Machine {
    library: Library,
    clock: Clock,
    inventory: Inventory,
    now_ns: u64,
}

impl Machine {
    fn new(library: Library) -> Self {
        Self::with(library, |library| library.settings())
    }

    fn with(library: Library, settings: impl Fn(&Library) -> SourceSettings) -> Self {
        let clock = Clock::manual(START_NS);
        library.set_global(Driver::NowNs, START_NS);
        let inventory = discover(&settings(&library), &clock);
        Self { library, clock, inventory, now_ns: START_NS }
    }

    fn domains(&self) -> Vec<Domain> {
        self.inventory.opened.iter().flat_map(|source| &source.domains).cloned().collect()
    }

    fn set_clock(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        self.library.set_global(Driver::NowNs, now_ns);
        self.clock.set(now_ns);
    }

    /// Reads every source once: one reading per domain.
    fn read(&mut self) -> Vec<EnergyReading> {
        self.inventory.opened.iter_mut().flat_map(read).collect()
    }

    /// Advances `ns` in steps of 10 ms with a read at each. A counter that was skipped because it is too expensive, as
    /// may happen on a busy machine, keeps its previous reading.
    fn read_for(&mut self, ns: u64) -> Vec<EnergyReading> {
        let (until_ns, mut last) = (self.now_ns + ns, vec![EnergyReading::default(); self.domains().len()]);
        while self.now_ns < until_ns {
            self.set_clock(self.now_ns + 10 * MS);
            for (last, reading) in last.iter_mut().zip(self.read()) {
                if reading.valid || reading.shape_uj == 0 {
                    *last = reading;
                }
            }
        }
        last
    }

    /// The account of a span of every domain, read every 10 ms from a second before it to a second after it.
    fn account(&mut self, from_ns: u64, to_ns: u64) -> Account {
        self.account_while(from_ns, to_ns, |_, _| ())
    }

    fn account_while(&mut self, from_ns: u64, to_ns: u64, mut turn: impl FnMut(u64, &Library)) -> Account {
        let domains = self.domains();
        let counted = domain_tree::counted_in_total(&domains, &vec![true; domains.len()]);
        let mut attributor = Attributor::new(domains, attribution::AttributionSettings::default());
        counted.iter().enumerate().for_each(|(at, counted)| attributor.domains().set_counted(at, *counted));
        let (mut key, mut closed, mut out) = (None, false, Vec::new());
        let end_ns = to_ns + 4 * S;
        while self.now_ns < end_ns && out.is_empty() {
            self.set_clock(self.now_ns + 10 * MS);
            turn(self.now_ns, &self.library);
            if key.is_none() && self.now_ns >= from_ns {
                key = Some(attributor.open(from_ns, opening(from_ns)).unwrap());
            }
            if !closed && self.now_ns >= to_ns {
                attributor.close(to_ns, key.unwrap(), to_ns, BTreeMap::new(), false).unwrap();
                closed = true;
            }
            for (at, reading) in self.read().iter().enumerate() {
                attributor.add_reading(at, self.now_ns, self.now_ns, reading);
            }
            attributor.settle(self.now_ns + 100, &mut out);
        }
        out.pop().expect("settled within four seconds").1
    }
}

fn read(opened: &mut OpenedSource) -> Vec<EnergyReading> {
    let mut readings = vec![EnergyReading::default(); opened.domains.len()];
    opened.source.read(&mut readings);
    readings
}

fn opening(at_ns: u64) -> NewSpan {
    NewSpan::new("s", at_ns)
}

fn true_uj(curve: &[(u64, u64)], from_ns: u64, to_ns: u64) -> f64 {
    let profile = PowerProfile::new(curve.iter().copied()).unwrap();
    (profile.energy_pj(to_ns) - profile.energy_pj(from_ns)) as f64 / 1e6
}

fn share<'a>(account: &'a Account, domain: &str) -> &'a Share {
    account.domains.iter().find(|share| share.domain == domain).unwrap_or_else(|| panic!("no {domain}"))
}

/// The distance of a share from the truth, after a check that it is within the guaranteed error.
fn off_uj(share: &Share, truth_uj: f64) -> f64 {
    let (figure, error) = (share.share_uj.unwrap() as f64, share.error_uj.unwrap() as f64);
    assert!((figure - truth_uj).abs() <= error, "{figure} ± {error} for {truth_uj}");
    (figure - truth_uj).abs()
}

fn names(inventory: &Inventory) -> Vec<&str> {
    inventory.opened.iter().flat_map(|source| &source.domains).map(|domain| domain.name.as_str()).collect()
}

fn absent(library: &Library) -> String {
    let inventory = discover(&library.settings(), &Clock::Machine);
    assert!(inventory.opened.is_empty());
    assert_eq!(inventory.absent[0].source, "nvml");
    inventory.absent[0].reason.clone()
}

#[test]
fn two_boards_are_metered_apart_and_the_total_has_each_joule_once() {
    let library = Library::new(2);
    library.curve(1, &OTHER);
    let mut machine = Machine::new(library);
    assert_eq!(names(&machine.inventory), ["gpu-0", "gpu-1"]);
    assert_eq!(machine.inventory.opened.len(), 2, "a source, and so a thread, for each");
    let domains = machine.domains();
    for (nth, domain) in domains.iter().enumerate() {
        assert_eq!((domain.kind, domain.grade, domain.quantum_uj), (DomainKind::Gpu, Grade::Measured, 1_000));
        assert_eq!(domain.device, Some(Library::uuid(0xA0 + nth as u64)));
    }
    let (from_ns, to_ns) = (START_NS + 1_234 * MS, START_NS + 3_456 * MS);
    let account = machine.account(from_ns, to_ns);
    let truths = [true_uj(&USUAL, from_ns, to_ns), true_uj(&OTHER, from_ns, to_ns)];
    for (domain, truth_uj) in ["gpu-0", "gpu-1"].into_iter().zip(truths) {
        assert!(off_uj(share(&account, domain), truth_uj) < 0.05 * truth_uj, "{account:?}");
    }
    let total_uj = account.share_uj.unwrap() as f64;
    assert!((total_uj - truths[0] - truths[1]).abs() <= account.error_uj.unwrap() as f64);
    assert_eq!(account.grade, Some(Grade::Measured));
}

#[test]
fn power_of_the_moment_places_energy_within_the_counters_steps_and_widens_no_bound() {
    // Bursts of 40 ms within counter steps of 100 ms; each span contains exactly one burst.
    let curve = [(160 * MS, 60_000), (40 * MS, 500_000)];
    let (mut off, mut bounds) = ([0.0, 0.0], [0, 0]);
    for instant in [0, 1] {
        let library = Library::new(1);
        library.curve(0, &curve);
        library.set(0, Knob::Instant, instant);
        library.set(0, Knob::PhaseNs, 33 * MS);
        let mut machine = Machine::new(library);
        for nth in 1..=8 {
            // At a fixed offset in the repeating curve.
            let from_ns = machine.now_ns.div_ceil(200 * MS) * 200 * MS + 600 * MS + 150 * MS;
            let to_ns = from_ns + 60 * MS + nth;
            let account = machine.account(from_ns, to_ns);
            let share = share(&account, "gpu-0");
            off[instant as usize] += off_uj(share, true_uj(&curve, from_ns, to_ns));
            bounds[instant as usize] += share.error_uj.unwrap();
        }
    }
    assert!(off[1] < off[0] / 2.0, "without a sensor {} µJ off, with it {} µJ", off[0], off[1]);
    // The bound comes from the counter; the sensor only changes where within it the share lies.
    assert!(bounds[1] < 2 * bounds[0], "{bounds:?}");
}

#[test]
fn a_grace_hopper_board_counts_its_module_once_and_shows_the_parts() {
    let library = Library::new(1);
    library.set(0, Knob::Module, 1);
    library.set(0, Knob::Memory, 1);
    let mut machine = Machine::new(library);
    let domains = machine.domains();
    let described: Vec<_> =
        domains.iter().map(|d| (d.name.as_str(), d.kind, d.parent.as_deref(), d.grade)).collect();
    assert_eq!(
        described,
        [
            ("gpu-0", DomainKind::Gpu, Some("module-0"), Grade::Measured),
            ("module-0", DomainKind::Module, None, Grade::Measured),
            ("gpu-memory-0", DomainKind::GpuMemory, Some("gpu-0"), Grade::Measured),
        ]
    );
    let (from_ns, to_ns) = (START_NS + 1_000 * MS, START_NS + 3_050 * MS);
    let account = machine.account(from_ns, to_ns);
    let truth_uj = true_uj(&USUAL, from_ns, to_ns);
    off_uj(share(&account, "gpu-0"), truth_uj);
    off_uj(share(&account, "module-0"), truth_uj * 1.5);
    off_uj(share(&account, "gpu-memory-0"), truth_uj / 4.0);
    assert_eq!(account.share_uj, share(&account, "module-0").share_uj);
}

#[test]
fn a_module_that_may_hold_several_boards_is_not_counted_and_says_so() {
    let library = Library::new(2);
    library.set(0, Knob::Module, 2);
    library.set(1, Knob::Module, 2);
    let machine = Machine::new(library);
    assert_eq!(names(&machine.inventory), ["gpu-0", "gpu-1"]);
    assert!(machine.inventory.absent[1].reason.contains("gpu-1: NVIDIA GB200 also reports its module"));
}

#[test]
fn mig_is_metered_as_a_board_and_says_so() {
    let library = Library::new(2);
    library.set(1, Knob::Mig, 1);
    let machine = Machine::new(library);
    assert_eq!(names(&machine.inventory), ["gpu-0", "gpu-1"]);
    let reasons: Vec<_> = machine.inventory.absent.iter().map(|absent| absent.reason.as_str()).collect();
    assert_eq!(
        reasons,
        ["gpu-1: MIG is enabled; NVML reports the energy of the whole board only, not of its instances"]
    );
}

#[test]
fn a_board_with_mig_is_counted_once_whatever_its_instances_do() {
    let library = Library::new(2);
    library.set(1, Knob::Mig, 1);
    library.curve(1, &OTHER);
    let mut machine = Machine::new(library);
    let domains = machine.domains();
    let counted = domain_tree::counted_in_total(&domains, &[true, true]);
    assert_eq!(counted, [true, true], "{domains:?}");
    assert!(domains.iter().all(|domain| domain.parent.is_none() && domain.grade == Grade::Measured));
    let (from_ns, to_ns) = (START_NS + 1_234 * MS, START_NS + 3_456 * MS);
    let account = machine.account(from_ns, to_ns);
    let truths = [true_uj(&USUAL, from_ns, to_ns), true_uj(&OTHER, from_ns, to_ns)];
    for (domain, truth_uj) in ["gpu-0", "gpu-1"].into_iter().zip(truths) {
        assert!(off_uj(share(&account, domain), truth_uj) < 0.05 * truth_uj, "{account:?}");
    }
    assert_eq!(account.domains.len(), 2, "no instance is a domain");
    let total_uj = account.share_uj.unwrap() as f64;
    assert!((total_uj - truths[0] - truths[1]).abs() <= account.error_uj.unwrap() as f64);
}

#[test]
fn a_board_on_which_mig_is_turned_on_is_reset_and_continues_after_a_gap() {
    let mut machine = Machine::new(Library::new(1));
    let (from_ns, to_ns) = (START_NS + S, START_NS + 8 * S);
    // The driver resets the board when the mode changes: it is lost, and its counter starts at 0 (MIG User Guide).
    let reset_ns = START_NS + 2 * S..START_NS + 3 * S;
    let account = machine.account_while(from_ns, to_ns, |now_ns, library| {
        library.set(0, Knob::Refuses, if reset_ns.contains(&now_ns) { GPU_IS_LOST } else { 0 });
        if reset_ns.contains(&now_ns) {
            library.set(0, Knob::Mig, 1);
            library.set(0, Knob::BaseNs, now_ns);
        }
    });
    let board = share(&account, "gpu-0");
    assert!(board.unknown_ns >= S && board.unknown_ns < 4 * S, "{board:?}");
    let most_uj = true_uj(&USUAL, from_ns, to_ns);
    assert_eq!(board.error_uj, None);
    assert!(board.share_uj.is_none_or(|share_uj| share_uj as f64 <= most_uj), "{board:?}");
}

#[test]
fn without_a_counter_power_is_integrated_and_the_truth_lies_within_its_uncertainty() {
    let library = Library::new(1);
    library.set(0, Knob::Counter, 0);
    let mut machine = Machine::new(library);
    let domain = machine.domains().remove(0);
    assert_eq!(
        (domain.grade, domain.ceiling_mw),
        (Grade::Integrated, Some(900_000)),
        "twice its highest limit"
    );
    let (from_ns, to_ns) = (START_NS + 1_010 * MS, START_NS + 4_020 * MS);
    let account = machine.account(from_ns, to_ns);
    let truth_uj = true_uj(&USUAL, from_ns, to_ns);
    assert!(off_uj(share(&account, "gpu-0"), truth_uj) < 0.05 * truth_uj);
    assert_eq!(account.grade, Some(Grade::Integrated));
}

#[test]
fn a_board_without_counter_and_power_is_estimated_from_its_limit_and_utilization() {
    let library = Library::new(1);
    for (knob, value) in [(Knob::Counter, 0), (Knob::Instant, 0), (Knob::Usage, 0), (Knob::LimitMw, 300_000)]
    {
        library.set(0, knob, value);
    }
    assert!(absent(&library).contains("reports neither an energy counter nor its current power"));
    library.set(0, Knob::LoadPercent, 1);
    let mut machine = Machine::new(library);
    let domain = machine.domains().remove(0);
    assert_eq!((domain.grade, domain.ceiling_mw), (Grade::Estimated, Some(300_000)));
    let reason = &machine.inventory.absent[0].reason;
    assert!(reason.contains("estimated from its power limit and utilization"), "{reason}");
    // An idle board draws 11.3 % of its limit, a busy one all of it; the interval is from 0 to the limit.
    for (load_percent, power_mw) in [(0, 33_900), (50, 166_950), (100, 300_000)] {
        machine.library.set(0, Knob::LoadPercent, load_percent + 1);
        let from = machine.read_for(10 * MS)[0];
        let to = machine.read_for(S)[0];
        assert_eq!(to.energy_uj - from.energy_uj, power_mw * 1_000, "{load_percent} %");
        let farther_mw = power_mw.max(300_000 - power_mw);
        assert_eq!(to.uncertainty_uj - from.uncertainty_uj, farther_mw * 1_000, "{load_percent} %");
    }
    // A board that is lost meanwhile is a gap and not idle.
    machine.library.set(0, Knob::Refuses, GPU_IS_LOST);
    assert!(!machine.read_for(10 * MS)[0].valid);
}

#[test]
fn a_mean_over_a_second_is_never_taken_for_the_power_of_the_moment() {
    let hopper = Library::new(1);
    hopper.set(0, Knob::Counter, 0);
    hopper.set(0, Knob::Instant, 0);
    assert!(absent(&hopper).contains("neither an energy counter nor its current power"));

    // On Turing the power is instantaneous.
    hopper.set(0, Knob::Architecture, 6);
    let mut machine = Machine::new(hopper);
    assert_eq!(machine.domains()[0].grade, Grade::Integrated);
    let (from_ns, to_ns) = (START_NS + 1_010 * MS, START_NS + 4_020 * MS);
    let account = machine.account(from_ns, to_ns);
    let truth_uj = true_uj(&USUAL, from_ns, to_ns);
    assert!(off_uj(share(&account, "gpu-0"), truth_uj) < 0.05 * truth_uj);
}

#[test]
fn an_old_library_without_fields_has_its_counter_by_the_call_of_its_own() {
    let mut machine = Machine::new(Library::built(1, &["WITHOUT_FIELDS"]));
    assert_eq!(machine.domains()[0].grade, Grade::Measured);
    let (from_ns, to_ns) = (START_NS + 1_010 * MS, START_NS + 4_020 * MS);
    let account = machine.account(from_ns, to_ns);
    off_uj(share(&account, "gpu-0"), true_uj(&USUAL, from_ns, to_ns));
    assert_eq!(machine.read()[0].shape_uj, 0, "no power, no shape");
}

#[test]
fn a_library_that_lacks_what_is_needed_is_absent_with_the_symbol_and_nothing_panics() {
    let reason = absent(&Library::built(1, &["WITHOUT_SHUTDOWN"]));
    assert!(reason.contains("nvmlShutdown") && reason.contains("newer NVIDIA driver"), "{reason}");
    let reason = absent(&Library::built(1, &["WITHOUT_UUID"]));
    assert!(reason.starts_with("gpu-0: ") && reason.contains("nvmlDeviceGetUUID"), "{reason}");
}

#[test]
fn a_missing_library_or_driver_is_absent_with_the_reason_and_the_remedy() {
    let library = Library::new(1);
    library.set_global(Driver::Unloaded, 1);
    assert!(absent(&library).contains("modprobe nvidia"));
    library.set_global(Driver::Unloaded, 0);
    library.set_global(Driver::Refusal, LIBRARY_MISMATCH);
    assert!(absent(&library).contains("updated while it was loaded: reboot"));
    library.set_global(Driver::Refusal, 0);
    library.set_global(Driver::Boards, 0);
    assert!(absent(&library).contains("lists no GPU"));
    fs::write(library.path(), "no library").unwrap();
    let reason = absent(&library);
    assert!(reason.contains("libnvidia-ml.so") && reason.contains("--nvml-library"), "{reason}");
    fs::remove_file(library.path()).unwrap();
    let reason = absent(&library);
    assert!(reason.contains("cannot open shared object file"), "{reason}");
    assert_eq!(reason.matches("libnvidia-ml.so").count(), 1, "{reason}");
}

#[test]
fn a_board_that_falls_off_the_bus_is_silent_the_other_goes_on_and_no_joule_is_made_up() {
    for refusal in [GPU_IS_LOST, UNKNOWN] {
        let mut machine = Machine::new(Library::new(2));
        let before = machine.read_for(S);
        machine.library.set(0, Knob::Refuses, refusal);
        let lost = machine.read_for(3 * S);
        assert!(!lost[0].valid && lost[1].valid && lost[1].energy_uj > before[1].energy_uj);
        machine.library.set(0, Knob::Refuses, 0);
        let back = machine.read_for(5 * S);
        assert!(back[0].valid && back[0].epoch > before[0].epoch);
        assert_eq!(back[1].epoch, 0);
        // After its return the counter shows at most the energy used since then.
        let most_uj = true_uj(&USUAL, machine.now_ns - 5 * S - 100 * MS, machine.now_ns);
        assert!(((back[0].energy_uj - before[0].energy_uj) as f64) <= most_uj);
    }
}

#[test]
fn an_account_over_a_board_that_was_lost_has_unknown_time_and_no_total() {
    let mut machine = Machine::new(Library::new(2));
    let (from_ns, to_ns) = (START_NS + S, START_NS + 9 * S);
    let lost_ns = START_NS + 2 * S..START_NS + 3 * S;
    let account = machine.account_while(from_ns, to_ns, |now_ns, library| {
        library.set(0, Knob::Refuses, if lost_ns.contains(&now_ns) { GPU_IS_LOST } else { 0 });
    });
    let (lost, kept) = (share(&account, "gpu-0"), share(&account, "gpu-1"));
    assert!(lost.unknown_ns >= S && lost.unknown_ns < 4 * S, "{lost:?}");
    assert_eq!((lost.error_uj, kept.unknown_ns), (None, 0));
    off_uj(kept, true_uj(&USUAL, from_ns, to_ns));
}

#[test]
fn a_lost_board_is_asked_again_after_ever_longer_waits() {
    let mut machine = Machine::new(Library::new(1));
    machine.read_for(S);
    machine.library.set(0, Knob::Refuses, GPU_IS_LOST);
    machine.read_for(10 * MS);
    let before = machine.library.get_global(Driver::Inits);
    machine.read_for(100 * S);
    // After 1, 2, 4, 8, 16, 32 s: at 1, 3, 7, 15, 31 and 63 s.
    assert_eq!(machine.library.get_global(Driver::Inits) - before, 6);
}

#[test]
fn a_driver_that_is_reloaded_begins_a_new_epoch_and_the_energy_never_goes_back() {
    let mut machine = Machine::new(Library::new(2));
    let before = machine.read_for(2 * S);
    machine.library.set_global(Driver::Unloaded, 1);
    let away = machine.read_for(500 * MS);
    assert!(away.iter().all(|reading| !reading.valid));
    machine.library.reload(machine.now_ns);
    machine.library.set_global(Driver::Unloaded, 0);
    let back = machine.read_for(3 * S);
    for (back, before) in back.iter().zip(&before) {
        assert!(back.valid && back.epoch == before.epoch + 1, "{back:?}");
        assert!(back.energy_uj > before.energy_uj);
        let most_uj = true_uj(&USUAL, machine.now_ns - 3 * S, machine.now_ns);
        assert!(((back.energy_uj - before.energy_uj) as f64) <= most_uj + 1_000.0);
    }
}

#[test]
fn a_counter_that_begins_at_0_again_under_the_same_driver_is_a_new_epoch_too() {
    let mut machine = Machine::new(Library::new(1));
    let before = machine.read_for(2 * S);
    machine.library.set(0, Knob::BaseNs, machine.now_ns);
    let after = machine.read_for(S);
    assert_eq!(after[0].epoch, before[0].epoch + 1);
    assert!(after[0].energy_uj >= before[0].energy_uj);
}

#[test]
fn boards_keep_their_names_when_a_new_driver_lists_them_in_another_order() {
    let library = Library::new(2);
    library.curve(1, &[(S, 10_000)]);
    let mut machine = Machine::new(library);
    let before = machine.read_for(2 * S);
    machine.library.set(0, Knob::ShownAt, 1);
    machine.library.set(1, Knob::ShownAt, 0);
    machine.library.reload(machine.now_ns);
    let first = machine.read_for(3 * S);
    let second = machine.read_for(5 * S);
    let grown: Vec<u64> = second.iter().zip(&first).map(|(b, a)| b.energy_uj - a.energy_uj).collect();
    assert!(first[0].epoch > before[0].epoch, "the reload was seen");
    assert_eq!(grown[1], 50_000_000, "gpu-1 still is the board of 10 W");
    assert!(grown[0] > 500_000_000);
    assert_eq!(machine.domains()[0].device, Some(Library::uuid(0xA0)));
}

#[test]
fn a_counter_and_a_sensor_that_disagree_are_shown_to() {
    let library = Library::new(2);
    library.set(0, Knob::SensorPermille, 800);
    let mut machine = Machine::new(library);
    let mut profiles = [CounterProfile::new(true), CounterProfile::new(true)];
    for _ in 0..1_000 {
        machine.set_clock(machine.now_ns + 10 * MS);
        for (profile, reading) in profiles.iter_mut().zip(machine.read()) {
            profile.observe(machine.now_ns, machine.now_ns, &reading);
        }
    }
    let [off, agreeing] = profiles.map(|profile| profile.residual().unwrap());
    assert!((off - 0.25).abs() < 0.03 && agreeing.abs() < 0.03, "{off} {agreeing}");
}

#[test]
fn an_expensive_counter_is_read_rarely_and_power_every_time() {
    let library = Library::new(1);
    library.set(0, Knob::BurnNs, 2 * MS);
    let mut machine = Machine::new(library);
    let read_counts = |machine: &Machine| {
        (machine.library.get(0, Knob::EnergyReads), machine.library.get(0, Knob::PowerReads))
    };
    let before = read_counts(&machine);
    machine.read_for(2 * S);
    let after = read_counts(&machine);
    assert_eq!(after.1 - before.1, 200);
    // Each read takes 2 ms, and 1 % of a core is allowed: one read in 200 ms, or fewer where this machine is slow.
    assert!((1..=11).contains(&(after.0 - before.0)), "{before:?} {after:?}");
    machine.set_clock(machine.now_ns + 60 * S);
    assert!(machine.read()[0].valid, "after a rest the counter is asked at once");
    machine.set_clock(machine.now_ns + 10 * MS);
    let between = machine.read()[0];
    assert!(!between.valid && between.shape_uj > 0);
}

#[test]
fn a_gpu_alone_does_not_stand_for_the_cpu_and_both_make_the_total() {
    let proc = tempfile::tempdir().unwrap();
    fs::write(proc.path().join("stat"), "cpu  1 2 3 4 5 6 7 8 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n").unwrap();
    let machine = Machine::with(Library::new(1), |library| {
        let enabled = ["nvml", "estimate"].map(String::from).to_vec();
        SourceSettings { proc_root: proc.path().into(), enabled, ..library.settings() }
    });
    assert_eq!(names(&machine.inventory), ["gpu-0", "cpu"]);
    assert_eq!(domain_tree::counted_in_total(&machine.domains(), &[true, true]), [true, true]);
}

#[test]
fn discovery_sees_live_counters_move_and_dead_ones_not() {
    let library = Library::new(2);
    library.curve(1, &[(S, 0)]);
    let inventory = discover(&library.settings(), &Clock::Machine);
    let advanced: Vec<_> = inventory.opened.iter().map(|source| source.advanced.clone()).collect();
    assert_eq!(advanced, [[true], [false]]);
}

#[test]
fn a_library_that_hangs_while_it_is_released_holds_no_thread_that_drops_a_board() {
    let library = Library::new(1);
    let inventory = discover(&library.settings(), &Clock::Machine);
    assert_eq!(inventory.opened.len(), 1);
    library.set_global(Driver::ShutdownHangs, 1);
    let dropping = std::thread::spawn(move || drop(inventory));
    wait_until("it is dropped", || dropping.is_finished());
    library.set_global(Driver::ShutdownHangs, 0);
}

#[test]
fn boards_with_expensive_counters_are_live_and_their_first_reading_is_valid() {
    let library = Library::new(2);
    for board in [0, 1] {
        // Both boards together: one read in 400 ms at most, which is longer than the observation at the start.
        library.set(board, Knob::BurnNs, 2_400_000);
    }
    let mut inventory = discover(&library.settings(), &Clock::Machine);
    let advanced: Vec<_> = inventory.opened.iter().map(|source| source.advanced.clone()).collect();
    assert_eq!(advanced, [[true], [true]]);
    for source in &mut inventory.opened {
        assert!(read(source)[0].valid, "a span may begin at the first reading");
    }
}

#[test]
fn an_expensive_counter_is_read_often_enough_not_to_be_lost() {
    let library = Library::new(1);
    library.set(0, Knob::SleepNs, 200 * MS);
    let mut machine = Machine::new(library);
    let mut profile = CounterProfile::new(true);
    let (mut last_ns, mut valid) = (machine.now_ns, 0);
    for _ in 0..450 {
        machine.set_clock(machine.now_ns + 10 * MS);
        let reading = machine.read()[0];
        profile.observe(machine.now_ns, machine.now_ns, &reading);
        assert_ne!(profile.liveness().0, Liveness::Lost, "at {}", machine.now_ns);
        if reading.valid {
            assert!(machine.now_ns - last_ns <= 1_100 * MS, "silent from {last_ns} to {}", machine.now_ns);
            (last_ns, valid) = (machine.now_ns, valid + 1);
        }
    }
    assert!((4..=6).contains(&valid), "asked once a second, and not at each read: {valid}");
}

fn start(opened: OpenedSource) -> Sampler {
    let settings = sampler::SamplerSettings { characterisation_ns: 0, ..sampler::SamplerSettings::default() };
    let sampler = sampler::start(opened, &settings, Clock::Machine).unwrap();
    sampler.set_fast(true);
    sampler
}

#[test]
fn a_hanging_call_blocks_only_its_own_board_and_not_the_close() {
    let library = Library::new(2);
    let mut inventory = discover(&library.settings(), &Clock::Machine);
    let (second, first) = (inventory.opened.pop().unwrap(), inventory.opened.pop().unwrap());
    let (first, second) = (start(first), start(second));
    wait_until("both tick", || first.stats().ticks > 3 && second.stats().ticks > 3);
    library.set(0, Knob::Hangs, 1);
    wait_until("the first hangs", || library.get(0, Knob::BlockedCalls) == 1);
    let (held, others) = (first.stats().ticks, second.stats().ticks);
    wait_until("the second continues", || second.stats().ticks > others + 50);
    assert_eq!(first.stats().ticks, held);
    assert!(first.hung_for_ns(Clock::Machine.now_ns()).is_some(), "and the meter can see it");
    drop(first);
    assert_eq!(library.get(0, Knob::Hangs), 1, "closed while the call still hangs");
    library.set(0, Knob::Hangs, 0);
    let more = second.stats().ticks;
    wait_until("the second still continues", || second.stats().ticks > more + 10);
}

#[test]
fn a_board_that_hangs_at_the_start_keeps_the_source_starting_and_the_other_is_there() {
    let library = Library::new(2);
    library.set(0, Knob::Hangs, 1);
    let mut inventory = discover_within(&library.settings(), &Clock::Machine, Duration::from_millis(50));
    let mut starting = inventory.starting.take().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while inventory.opened.is_empty() {
        let progress = starting.next_progress(Some(deadline)).expect("the other board opens");
        inventory.opened.extend(progress.found.opened);
    }
    assert_eq!(names(&inventory), ["gpu-1"]);
    assert_eq!(starting.names(), ["nvml"]);
    library.set(0, Knob::Hangs, 0);
}

#[test]
fn a_library_that_hangs_at_the_start_keeps_the_source_starting_and_its_boards_come_later() {
    let library = Library::new(1);
    library.set_global(Driver::InitHangs, 1);
    let inventory = discover_within(&library.settings(), &Clock::Machine, Duration::from_millis(50));
    assert!(inventory.opened.is_empty());
    let mut starting = inventory.starting.unwrap();
    assert_eq!(starting.names(), ["nvml"]);
    library.set_global(Driver::InitHangs, 0);
    let progress = starting.next_progress(Some(Instant::now() + Duration::from_secs(30))).unwrap();
    assert_eq!(names(&progress.found), ["gpu-0"]);
}

/// The program itself on the fake boards.
struct Daemon {
    child: Child,
    folder: tempfile::TempDir,
}

impl Daemon {
    fn start(library: &Library) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("wattspan.toml");
        fs::write(&config, "[source]\nenabled = [\"nvml\"]\n").unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_wattspand"))
            .args(["--config".as_ref(), config.as_os_str()])
            .args(["--socket".as_ref(), folder.path().join("run/wattspan.sock").as_os_str()])
            .args(["--nvml-library".as_ref(), library.path().as_os_str()])
            .args(["--state-dir".as_ref(), folder.path().join("state").as_os_str()])
            .stderr(File::create(folder.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        Self { child, folder }
    }

    fn client(&self) -> Client {
        let socket = self.folder.path().join("run/wattspan.sock");
        wait_until("it listens", || UnixStream::connect(&socket).is_ok());
        Client::from_stream(UnixStream::connect(&socket).unwrap()).unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_daemon_with_a_hanging_board_reports_it_serves_clients_and_stops_on_request() {
    let library = Library::new(2);
    let mut daemon = Daemon::start(&library);
    let client = daemon.client();
    let live = |client: &Client| {
        let info = client.info().unwrap();
        info.domains.iter().map(|domain| (domain.liveness, domain.reason.clone())).collect::<Vec<_>>()
    };
    wait_until("both live", || live(&client).iter().all(|domain| domain.0 == Liveness::Live));
    let span = client.open_span("question").unwrap();
    library.set(0, Knob::Hangs, 1);
    wait_until("the hang is seen", || live(&client)[0].0 == Liveness::Lost);
    let states = live(&client);
    assert_eq!(states[1].0, Liveness::Live);
    assert!(states[0].1.as_ref().unwrap().contains("the nvml driver has not answered for"), "{states:?}");
    let account = span.close().unwrap();
    let kept = account.domains.iter().find(|share| share.domain == "gpu-1").unwrap();
    assert!(kept.share_uj.unwrap() > 0, "{account:?}");
    rustix::process::kill_process(Pid::from_child(&daemon.child), Signal::TERM).unwrap();
    wait_until("it ended", || daemon.child.try_wait().unwrap().is_some());
    assert!(daemon.child.wait().unwrap().success(), "{}", daemon.log());
    assert_eq!(library.get(0, Knob::Hangs), 1, "while the call still hangs");
}

#[test]
fn a_daemon_is_ready_while_the_library_hangs_and_its_totals_are_unknown_until_the_boards_are_there() {
    let library = Library::new(2);
    library.set_global(Driver::InitHangs, 1);
    let daemon = Daemon::start(&library);
    let client = daemon.client();
    let starting = client.info().unwrap().domains;
    assert_eq!(starting.len(), 1, "{starting:?}");
    assert_eq!((&*starting[0].name, starting[0].liveness), ("nvml", Liveness::Starting), "{starting:?}");
    assert!(starting[0].counted && starting[0].reason.as_ref().unwrap().contains("has not answered"));
    let across = client.open_span("across").unwrap();
    library.set_global(Driver::InitHangs, 0);
    wait_until("the boards are there", || {
        let info = client.info().unwrap();
        let live = info.domains.iter().filter(|domain| domain.counted && domain.liveness == Liveness::Live);
        // The board that answers first is added first.
        let live: BTreeSet<&str> = live.map(|domain| domain.name.as_str()).collect();
        live == BTreeSet::from(["gpu-0", "gpu-1"]) && info.domains.len() == 2
    });
    let after = client.open_span("after").unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let (after, across) = (after.close().unwrap(), across.close().unwrap());
    assert_eq!((across.share_uj, across.window_uj), (None, None), "{across:?}");
    assert_eq!(across.domains.len(), 1);
    assert_eq!(across.domains[0].unknown_ns, across.closed_ns.unwrap() - across.opened_ns, "{across:?}");
    let parts: Vec<u64> = after.domains.iter().map(|share| share.share_uj.unwrap()).collect();
    assert_eq!((parts.len(), after.share_uj), (2, Some(parts.iter().sum())), "{after:?}");
    assert!(client.balance().unwrap().iter().all(|balance| balance.domain != "nvml"));
}

/// How many shares of spans miss the truth, on boards whose counters have these lags, with this configured lag of every
/// board.
fn shares_outside_their_bounds(lags_ms: &[u64], configured_ms: Option<f64>) -> usize {
    let library = Library::new(lags_ms.len() as u64);
    let mut config = Config::default();
    config.source.nvml_library = Some(library.path());
    config.source.enabled = Some(vec!["nvml".into()]);
    for (board, lag_ms) in (0..).zip(lags_ms) {
        library.set(board, Knob::LagNs, lag_ms * MS);
        library.curve(board, &LAGGED);
        config.lag_ms.extend(configured_ms.map(|ms| (format!("gpu-{board}"), ms)));
    }
    let meter = EmbeddedMeter::start(&config).unwrap();
    let client = meter.connect().unwrap();
    let mut outside = 0;
    for _ in 0..11 {
        sleep_until_remainder(200 * MS);
        let span = client.open_span("lagged").unwrap();
        sleep_until_remainder(10 * MS);
        let account = span.close().unwrap();
        let truth_uj = true_uj(&LAGGED, account.opened_ns, account.closed_ns.unwrap());
        assert_eq!(account.domains.len(), lags_ms.len());
        for share in &account.domains {
            let (figure, error) = (share.share_uj.unwrap() as f64, share.error_uj.unwrap() as f64);
            outside += usize::from((figure - truth_uj).abs() > error);
        }
    }
    let info = client.info().unwrap();
    let expected = if configured_ms.is_some() { "configured" } else { "update_interval" };
    for domain in &info.domains {
        assert_eq!(domain.lag_origin.as_deref(), Some(expected), "{domain:?}");
        let expected_ns = configured_ms.map_or(100 * MS, |ms| ms as u64 * MS);
        assert!(domain.lag_ns.unwrap().abs_diff(expected_ns) <= 20 * MS, "{domain:?}");
    }
    let ceilings = info.domains[0].ceilings.as_ref().unwrap();
    let limits: Vec<_> = ceilings.iter().map(|limit| (limit.limit_mw, limit.origin.as_str())).collect();
    assert_eq!(limits, [(900_000, "2 x NVML enforced limit"), (450_000, "NVML enforced limit")]);
    assert_eq!(info.domains[0].exceeded, None);
    outside
}

/// Each span is quiet but for its end, 10 ms after the begin of a burst: its bound is narrow, and what is published too late
/// is outside of it. The period is no multiple of the counter's update interval.
const LAGGED: [(u64, u64); 2] = [(55 * MS, 600_000), (358 * MS, 20_000)];

/// Waits for the next instant at this distance from the begin of the curve.
fn sleep_until_remainder(after_begin_ns: u64) {
    let period_ns = LAGGED[0].0 + LAGGED[1].0;
    let now_ns = wattspan_client::clock::monotonic_ns();
    let wait_ns = (after_begin_ns + period_ns - now_ns % period_ns) % period_ns;
    std::thread::sleep(Duration::from_nanos(wait_ns));
}

#[test]
fn spans_on_a_counter_that_lags_by_half_an_update_interval_are_within_their_bounds() {
    let lags_ms = [0, 40, 50, 60];
    assert_eq!(shares_outside_their_bounds(&lags_ms, None), 0);
    // The boards lag indeed, and a configured lag is in effect.
    assert!(shares_outside_their_bounds(&lags_ms, Some(0.0)) > 0);
}

/// How many spans that end 10 ms after the begin of a burst miss the truth, of the 100 phases of a counter that is published
/// `true_ms` after its update, with this assumed lag.
fn spans_outside_at_each_phase(true_ms: u64, assumed_ms: u64) -> usize {
    let burst = [(S + 300 * MS, 20_000), (55 * MS, 600_000), (S, 20_000)];
    let outside = |phase_ns: u64| {
        let truth = GroundTruth::new(&burst, 100 * MS, phase_ns, 1_000);
        let described = ground_truth::domain("gpu-0", DomainKind::Gpu, 1_000, Some(4_000_000));
        let mut attributor = Attributor::new(vec![described], attribution::AttributionSettings::default());
        attributor.domains().set_latency(0, assumed_ms * MS);
        let (mut out, mut now_ns) = (Vec::new(), 500 * MS);
        let (mut key, mut is_closed, end_ns) = (None, false, S + 310 * MS);
        while out.is_empty() {
            now_ns += 10 * MS;
            if key.is_none() && now_ns >= S {
                key = Some(attributor.open(S, opening(S)).unwrap());
            }
            if !is_closed && now_ns >= end_ns {
                attributor.close(end_ns, key.unwrap(), end_ns, BTreeMap::new(), false).unwrap();
                is_closed = true;
            }
            attributor.add_reading(0, now_ns, now_ns, &truth.reading(now_ns - true_ms * MS));
            attributor.settle(now_ns, &mut out);
        }
        let (_, account) = out.remove(0);
        let truth_uj = (truth.energy_pj(end_ns) - truth.energy_pj(S)) as f64 / 1e6;
        (account.share_uj.unwrap() as f64 - truth_uj).abs() > account.error_uj.unwrap() as f64
    };
    (0..100).filter(|phase| outside(phase * MS)).count()
}

#[test]
fn a_lag_of_one_update_interval_covers_every_phase_and_the_former_20_ms_do_not() {
    for true_ms in [40, 50, 60] {
        assert_eq!(spans_outside_at_each_phase(true_ms, 100), 0, "{true_ms} ms");
        let formerly = spans_outside_at_each_phase(true_ms, 20);
        assert!(formerly > 0, "{true_ms} ms: the test is not sharp");
    }
}

#[test]
fn an_account_settles_one_update_interval_and_the_lag_after_its_close() {
    const LAG_NS: u64 = 60 * MS;
    const READ_NS: u64 = 10 * MS;
    let truth = GroundTruth::new(&[(S, 100_000)], 100 * MS, 0, 1_000);
    let mut longest_ns = 0;
    for phase_ns in (0..100 * MS).step_by(7 * MS as usize) {
        let settings = attribution::AttributionSettings::default();
        let limit_ns = 100 * MS + LAG_NS + READ_NS + settings.horizon_ns + READ_NS;
        let described = ground_truth::domain("gpu-0", DomainKind::Gpu, 1_000, Some(1_000_000));
        let mut attributor = Attributor::new(vec![described], settings);
        attributor.domains().set_latency(0, LAG_NS);
        let (close_ns, mut out, mut now_ns) = (S + phase_ns, Vec::new(), 500 * MS);
        let mut key = None;
        while out.is_empty() {
            now_ns += READ_NS;
            if key.is_none() && now_ns >= 800 * MS {
                key = Some(attributor.open(now_ns, opening(now_ns)).unwrap());
            }
            if now_ns >= close_ns && now_ns - READ_NS < close_ns {
                attributor.close(now_ns, key.unwrap(), close_ns, BTreeMap::new(), false).unwrap();
            }
            let reading = truth.reading(now_ns - LAG_NS);
            attributor.add_reading(0, now_ns, now_ns, &reading);
            attributor.settle(now_ns, &mut out);
        }
        assert!(now_ns - close_ns <= limit_ns, "settled {} ms after its close", (now_ns - close_ns) / MS);
        longest_ns = longest_ns.max(now_ns - close_ns);
    }
    // The true energy up to the close is published only then.
    assert!(longest_ns > 100 * MS + LAG_NS, "{longest_ns}");
}
