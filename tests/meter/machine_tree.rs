//! A machine as text: the files of its energy interfaces, and what a meter must find in them.
//!
//! One file per machine in `tests/fixtures/trees`; docs/development.md has the format. The expectations come from the cited
//! source. The files are served by FUSE, so that counters move while they are read.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use crate::fuse_sysfs::{FuseMachine, MountedMachine, SquareWave};
use wattspan::clock::{Clock, monotonic_ns};
use wattspan::domain::{Domain, Duplicate, EnergyReading};
use wattspan::sources::dedup::domain_tree::counted_in_total;
use wattspan::sources::dedup::duplicate_pair::DuplicatePair;
use wattspan::sources::{Inventory, SourceSettings, discover};

const MS: u64 = 1_000_000;

/// Replaces a value that the source does not show.
const UNSHOWN: &str = "5000";

/// How long the energy of the total is observed.
const OBSERVED: Duration = Duration::from_millis(150);

/// The largest relative error of an observed power beyond the time of the reads: a counter moves in steps.
const TOLERANCE: f64 = 0.04;

/// The origin of a tree's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TreeOrigin {
    /// Files, names or values that somebody saw on the machine.
    Reported,
    /// Made from the source or the documentation of the driver.
    Derived,
}

/// A machine with the expectations of its source.
pub struct MachineTree {
    pub name: String,
    pub origin: TreeOrigin,
    /// The cited reports, commits and documents.
    pub sources: Vec<String>,
    files: Vec<(String, String)>,
    links: Vec<(String, String)>,
    /// "NAME KIND PARENT counted": a domain that is found.
    pub domains: Vec<String>,
    /// Domains that are found and stand still.
    pub stuck: Vec<String>,
    /// The power of the total in watts.
    pub total_w: Option<f64>,
    /// Parts of the reasons of what is not measured.
    pub absent: Vec<String>,
}

/// What was found on a mounted tree.
pub struct FoundMachine {
    pub inventory: Inventory,
    /// The observed power of each domain.
    powers: Vec<PowerRange>,
}

/// Bounds of a mean power, whenever between the clock readings around it a value was read.
#[derive(Debug, Clone, Copy, Default)]
pub struct PowerRange {
    low_w: f64,
    high_w: f64,
}

impl PowerRange {
    pub fn contains(self, power_w: f64) -> bool {
        (self.low_w * (1.0 - TOLERANCE)..=self.high_w * (1.0 + TOLERANCE)).contains(&power_w)
    }
}

impl MachineTree {
    pub fn read(path: &Path) -> Self {
        Self::parse(&fs::read_to_string(path).unwrap(), &path.display().to_string())
    }

    pub fn parse(text: &str, origin: &str) -> Self {
        let mut tree = Self {
            name: String::new(),
            origin: TreeOrigin::Reported,
            sources: Vec::new(),
            files: Vec::new(),
            links: Vec::new(),
            domains: Vec::new(),
            stuck: Vec::new(),
            total_w: None,
            absent: Vec::new(),
        };
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            tree.add(line).unwrap_or_else(|| panic!("{origin}: {line:?}"));
        }
        tree
    }

    fn add(&mut self, line: &str) -> Option<()> {
        if let Some((path, target)) = line.split_once(" -> ") {
            self.links.push((path.to_owned(), target.to_owned()));
            return Some(());
        }
        if let Some((path, value)) = line.split_once(" = ").filter(|(path, _)| path.contains('/')) {
            self.files.push((path.to_owned(), value.to_owned()));
            return Some(());
        }
        let (word, rest) = line.split_once(' ')?;
        let rest = rest.trim();
        match word {
            "machine" => self.name = rest.to_owned(),
            "source" => self.sources.push(rest.to_owned()),
            "origin" => {
                self.origin = match rest {
                    "reported" => TreeOrigin::Reported,
                    "derived" => TreeOrigin::Derived,
                    _ => return None,
                }
            }
            "domain" => self.domains.push(rest.to_owned()),
            "stuck" => self.stuck.push(rest.to_owned()),
            "absent" => self.absent.push(rest.to_owned()),
            "total" => self.total_w = Some(rest.strip_suffix(" W")?.parse().ok()?),
            _ => return None,
        }
        Some(())
    }

    /// The machine with other numbers of chips and zones, and other names of drivers that nothing may depend on.
    pub fn renamed(&self, seed: u64) -> Self {
        let rename = |path: &str| rename_path(path, seed);
        let name_of = |path: &str, value: &str| {
            let is_label_recognised = !DRIVERS_BY_NAME.iter().any(|driver| value.starts_with(driver));
            let is_name = path.starts_with("sys/class/hwmon/") && path.ends_with("/name");
            if is_name && is_label_recognised { format!("some_{value}_fork") } else { value.to_owned() }
        };
        let files = self.files.iter().map(|(path, value)| (rename(path), name_of(path, value)));
        let links = self.links.iter().map(|(path, target)| (rename(path), rename(target)));
        Self {
            name: self.name.clone(),
            origin: self.origin,
            sources: self.sources.clone(),
            files: files.collect(),
            links: links.collect(),
            domains: self.domains.clone(),
            stuck: self.stuck.clone(),
            total_w: self.total_w,
            absent: Vec::new(),
        }
    }

    /// Compares kinds, counted domains and total of the machine under other names; `None` where no tree can be mounted.
    pub fn check_kinds(&self) -> Option<Result<(), String>> {
        let mounted = self.mount()?;
        let kinds = |lines: &[String]| -> Vec<String> {
            let of = |line: &String| {
                let words: Vec<&str> = line.split(' ').collect();
                format!("{} {} {}", words[1], if words[2] == "-" { "-" } else { "within" }, words[3])
            };
            let mut kinds: Vec<String> = lines.iter().map(of).collect();
            kinds.sort();
            kinds
        };
        let mut difference = None;
        for _ in 0..5 {
            let found = self.discover(&mounted);
            let (shown, total) = (found.shown(), found.total());
            let is_same = kinds(&shown) == kinds(&self.domains)
                && self.total_w.is_none_or(|total_w| total.contains(total_w));
            difference = (!is_same)
                .then(|| format!("{shown:#?}, {total:?} of {:?} W, {}", self.total_w, found.reasons()));
            if difference.is_none() {
                break;
            }
        }
        Some(difference.map_or(Ok(()), Err))
    }

    /// Mounts the files; `None` where this system does not allow it.
    pub fn mount(&self) -> Option<MountedMachine> {
        let mut machine = FuseMachine::new();
        for (path, target) in &self.links {
            machine.link(path, target);
        }
        for (path, value) in &self.files {
            add_file(&mut machine, path, value);
        }
        machine.mount()
    }

    /// Discovers the mounted machine and observes its power.
    pub fn discover(&self, mounted: &MountedMachine) -> FoundMachine {
        let mut enabled = SourceSettings::default().enabled;
        // These sources would find this machine's own counters, or are no part of the tree.
        enabled.retain(|name| name != "perf" && name != "nvml" && name != "estimate");
        let has = |start: &str| self.files.iter().any(|(path, _)| path.starts_with(start));
        enabled.extend(has("proc/stat").then(|| "estimate".to_owned()));
        enabled.extend(has("cpu/").then(|| "msr".to_owned()));
        let enabled: Vec<_> = enabled.iter().map(String::as_str).collect();
        let mut inventory = discover(&mounted.settings(&enabled), &Clock::Machine);
        let powers = observe_powers(&mut inventory);
        FoundMachine { inventory, powers }
    }

    /// Compares what was found with what the source says; `None` where no tree can be mounted. Repeats, because a busy machine
    /// may see too little of a counter.
    pub fn check(&self) -> Option<Result<(), String>> {
        let mounted = self.mount()?;
        let mut difference = None;
        for _ in 0..5 {
            let found = self.discover(&mounted);
            difference =
                self.difference(&found).map(|difference| format!("{difference}\n{}", found.reasons()));
            if difference.is_none() {
                break;
            }
        }
        Some(difference.map_or(Ok(()), Err))
    }

    fn difference(&self, found: &FoundMachine) -> Option<String> {
        let (mut shown, mut expected) = (found.shown(), self.domains.clone());
        shown.sort();
        expected.sort();
        if shown != expected {
            return Some(format!("found {shown:#?}, expected {expected:#?}"));
        }
        let stuck = found.stuck();
        if stuck != self.stuck {
            return Some(format!("stuck are {stuck:?}, expected {:?}", self.stuck));
        }
        let reasons = found.reasons();
        if let Some(missing) = self.absent.iter().find(|part| !reasons.contains(part.as_str())) {
            return Some(format!("no reason contains {missing:?}"));
        }
        let total = found.total();
        let total_w = self.total_w.filter(|total_w| !total.contains(*total_w))?;
        Some(format!("the total is {total:?}, expected {total_w} W"))
    }
}

/// The drivers that are known by their names: GPUs and ACPI's meters, and chips whose channels have fixed meanings.
const DRIVERS_BY_NAME: [&str; 8] =
    ["amdgpu", "i915", "xe", "nouveau", "radeon", "power_meter", "ina3221", "ina238"];

/// Replaces the numbers of chips and of packages' zones in a path. Zones keep their hierarchy and chips their devices.
fn rename_path(path: &str, seed: u64) -> String {
    let other = |number: &str| -> Option<u64> {
        let number = number.parse::<u64>().ok()?;
        // A permutation of the numbers below 97, another one for each seed.
        (number < 97).then(|| (number * (5 + seed % 7) + 11 * seed) % 97)
    };
    let part = |part: &str| -> String {
        if let Some(number) = part.strip_prefix("hwmon").and_then(other) {
            return format!("hwmon{number}");
        }
        let zone = part.split_once(':').filter(|(control_type, _)| control_type.starts_with("intel-rapl"));
        let Some((control_type, numbers)) = zone else { return part.to_owned() };
        let (package, below) = numbers.split_once(':').unwrap_or((numbers, ""));
        let Some(package) = other(package) else { return part.to_owned() };
        let control_type =
            if seed % 2 == 1 { format!("{control_type}-new") } else { control_type.to_owned() };
        if below.is_empty() {
            format!("{control_type}:{package}")
        } else {
            format!("{control_type}:{package}:{below}")
        }
    };
    path.split('/').map(part).collect::<Vec<_>>().join("/")
}

impl FoundMachine {
    fn domains(&self) -> Vec<Domain> {
        domains(&self.inventory)
    }

    fn counted(&self) -> Vec<bool> {
        counted_in_total(&self.domains(), &live(&self.inventory))
    }

    /// The power of the counted domains.
    fn total(&self) -> PowerRange {
        let counted = self.powers.iter().zip(self.counted()).filter(|(_, counted)| *counted);
        counted.fold(PowerRange::default(), |sum, (power, _)| PowerRange {
            low_w: sum.low_w + power.low_w,
            high_w: sum.high_w + power.high_w,
        })
    }

    /// The power of a domain, whether it is counted or not.
    pub fn power(&self, name: &str) -> PowerRange {
        let at = self.domains().iter().position(|domain| domain.name == name);
        at.map(|at| self.powers[at]).unwrap_or_else(|| panic!("no {name}: {}", self.reasons()))
    }

    /// One line for each domain, as in a tree's file.
    pub fn shown(&self) -> Vec<String> {
        self.domains()
            .iter()
            .zip(self.counted())
            .map(|(domain, counted)| {
                let kind = serde_json::to_value(domain.kind).unwrap();
                let parent = domain.parent.as_deref().unwrap_or("-");
                let counted = if counted { "counted" } else { "-" };
                format!("{} {} {parent} {counted}", domain.name, kind.as_str().unwrap())
            })
            .collect()
    }

    /// The domains that stand still.
    pub fn stuck(&self) -> Vec<String> {
        let live = live(&self.inventory);
        self.domains()
            .into_iter()
            .zip(live)
            .filter(|(_, live)| !live)
            .map(|(domain, _)| domain.name)
            .collect()
    }

    pub fn reasons(&self) -> String {
        let line = |absent: &wattspan::domain::Absent| format!("{}: {}\n", absent.source, absent.reason);
        self.inventory.absent.iter().map(line).collect()
    }
}

/// All domains. One that may be the counter of an earlier live one lies within it, as in the running meter.
fn domains(inventory: &Inventory) -> Vec<Domain> {
    let mut domains: Vec<Domain> =
        inventory.opened.iter().flat_map(|opened| opened.domains.clone()).collect();
    let live = live(inventory);
    let place = |name: &str| domains.iter().position(|domain| domain.name == name).unwrap();
    let is_one = |pair: &&DuplicatePair| pair.state() != Duplicate::Independent;
    let pairs: Vec<(usize, usize)> = inventory
        .duplicates
        .iter()
        .filter(is_one)
        .map(|pair| (place(&pair.original), place(&pair.copy)))
        .filter(|(original, _)| live[*original])
        .collect();
    for (original, copy) in pairs.into_iter().rev() {
        domains[copy].parent = Some(domains[original].name.clone());
    }
    domains
}

fn live(inventory: &Inventory) -> Vec<bool> {
    inventory.opened.iter().flat_map(|opened| opened.advanced.clone()).collect()
}

/// One read of a source, between two clock readings.
struct TimedRead {
    before_ns: u64,
    after_ns: u64,
    readings: Vec<EnergyReading>,
}

/// The power of each domain.
fn observe_powers(inventory: &mut Inventory) -> Vec<PowerRange> {
    let mut read = || -> Vec<TimedRead> {
        let read = inventory.opened.iter_mut().map(|opened| {
            let mut readings = vec![EnergyReading::default(); opened.domains.len()];
            let before_ns = monotonic_ns();
            opened.source.read(&mut readings);
            TimedRead { before_ns, after_ns: monotonic_ns(), readings }
        });
        read.collect()
    };
    let first = read();
    sleep(OBSERVED);
    let last = read();
    first.iter().zip(&last).flat_map(|(first, last)| powers_between(first, last)).collect()
}

fn powers_between(first: &TimedRead, last: &TimedRead) -> Vec<PowerRange> {
    let (shortest_ns, longest_ns) = (last.before_ns - first.after_ns, last.after_ns - first.before_ns);
    let power = |(first, last): (&EnergyReading, &EnergyReading)| {
        let energy_nj = (last.energy_uj - first.energy_uj) as f64 * 1_000.0;
        PowerRange { low_w: energy_nj / longest_ns as f64, high_w: energy_nj / shortest_ns as f64 }
    };
    first.readings.iter().zip(&last.readings).map(power).collect()
}

/// Adds one file. `value`: a text, "?", or a value that changes:
///
/// - `@energy 12 W`: microjoules;
/// - `@rapl 12 W 61035 14`: microjoules of a 32-bit register of 2^-14 J that the driver multiplies by 61,035 nJ
///   (`exact`: by its unit);
/// - `@remaining 12 W 50000000 3600`: from 50,000,000 down, by one for each 3,600 µJ;
/// - `@msr 606=0xa0e03 611=12W/14`: registers with a value or an energy in 2^-14 J;
/// - `@lines a : 1 | b : 2`: a text of several lines;
/// - `@gpu_metrics 1.3 32 100 W`: AMD's table with an accumulator of 32 bits that wraps now; `none` or `stuck` for the bits;
/// - `@apu_metrics 2.2`: AMD's table of a processor with graphics.
fn add_file(machine: &mut FuseMachine, path: &str, value: &str) {
    let words: Vec<&str> = value.split_whitespace().collect();
    match words[..] {
        ["?"] => machine.text(path, UNSHOWN),
        ["@lines", ..] => machine.text(path, &value["@lines ".len()..].replace(" | ", "\n")),
        ["@energy", watts, "W"] => {
            let wave = wave(watts);
            machine.number(path, move |at| wave.energy_uj(at / MS * MS));
        }
        ["@rapl", watts, "W", "exact", shift] => {
            let (wave, shift) = (wave(watts), number(shift) as u32);
            let count = move |at: u64| wave.counts(at, MS, shift) & 0xFFFF_FFFF;
            machine.number(path, move |at| (count(at) * 1_000_000) >> shift);
        }
        ["@rapl", watts, "W", unit_nj, shift] => {
            let (wave, unit_nj, shift) = (wave(watts), number(unit_nj), number(shift) as u32);
            machine.number(path, move |at| (wave.counts(at, MS, shift) & 0xFFFF_FFFF) * unit_nj / 1_000);
        }
        ["@remaining", watts, "W", start, unit_uj] => {
            let (wave, start, unit_uj) = (wave(watts), number(start), number(unit_uj));
            let from_uj = wave.energy_uj(monotonic_ns());
            machine.number(path, move |at| start - (wave.energy_uj(at).saturating_sub(from_uj)) / unit_uj);
        }
        ["@apu_metrics", version] => {
            let content = version.strip_prefix("2.").unwrap().parse::<u8>().unwrap();
            machine.bytes(path, move |_, _| {
                let mut table = gpu_metrics(content, u64::MAX, u16::MAX);
                table[2] = 2;
                table
            });
        }
        ["@gpu_metrics", version, bits, watts, "W"] => add_gpu_metrics(machine, path, version, bits, watts),
        ["@msr", ref registers @ ..] => add_registers(machine, path, registers),
        _ => machine.text(path, value),
    }
}

fn wave(watts: &str) -> SquareWave {
    SquareWave::steady((watts.parse::<f64>().unwrap() * 1_000.0).round() as u64)
}

fn add_gpu_metrics(machine: &mut FuseMachine, path: &str, version: &str, bits: &str, watts: &str) {
    let (content, wave) = (content_revision(version), wave(watts));
    let shown_w = (wave.low_mw / 1_000) as u16;
    // The accumulator passes 2^32 10 ms from now.
    let begin = wave.counts(monotonic_ns() + 10 * MS, MS, 16);
    let count = move |at: u64| (1_u64 << 32).wrapping_add(wave.counts(at, MS, 16)).wrapping_sub(begin);
    match bits {
        "none" => machine.bytes(path, move |_, _| gpu_metrics(content, u64::MAX, shown_w)),
        "stuck" => machine.bytes(path, move |_, _| gpu_metrics(content, 0, shown_w)),
        "32" => machine.bytes(path, move |at, _| gpu_metrics(content, count(at) & 0xFFFF_FFFF, shown_w)),
        "64" => machine.bytes(path, move |at, _| gpu_metrics(content, count(at), shown_w)),
        _ => panic!("{bits:?}"),
    }
}

/// The content of one register.
#[derive(Clone, Copy)]
enum RegisterContent {
    Value(u64),
    /// An energy in 2^-n J.
    Energy(SquareWave, u32),
}

fn add_registers(machine: &mut FuseMachine, path: &str, registers: &[&str]) {
    let parse = |register: &&str| {
        let (address, value) = register.split_once('=').unwrap();
        let content = match value.split_once("W/") {
            Some((watts, shift)) => RegisterContent::Energy(wave(watts), number(shift) as u32),
            None => RegisterContent::Value(hexadecimal(value.strip_prefix("0x").unwrap())),
        };
        (hexadecimal(address), content)
    };
    let registers: Vec<(u64, RegisterContent)> = registers.iter().map(parse).collect();
    machine.bytes(path, move |at, address| {
        let value = match registers.iter().find(|register| register.0 == address) {
            None => 0,
            Some((_, RegisterContent::Value(value))) => *value,
            Some((_, RegisterContent::Energy(wave, shift))) => wave.counts(at, MS, *shift) & 0xFFFF_FFFF,
        };
        value.to_le_bytes().to_vec()
    });
}

fn hexadecimal(digits: &str) -> u64 {
    u64::from_str_radix(digits, 16).unwrap_or_else(|_| panic!("{digits:?}"))
}

/// The content revision of a table of format 1.
fn content_revision(version: &str) -> u8 {
    version.strip_prefix("1.").unwrap().parse().unwrap()
}

/// A table of `gpu_metrics` version 1.x (linux drivers/gpu/drm/amd/include/kgd_pp_interface.h).
fn gpu_metrics(content: u8, count: u64, watts: u16) -> Vec<u8> {
    let mut table = vec![0xFF_u8; 264];
    table[..2].copy_from_slice(&264_u16.to_le_bytes());
    (table[2], table[3]) = (1, content);
    let (power_at, energy_at) = match content {
        0..=3 => (22, 24),
        5 | 6 => (10, 88),
        _ => (10, 24),
    };
    table[power_at..power_at + 2].copy_from_slice(&watts.to_le_bytes());
    table[energy_at..energy_at + 8].copy_from_slice(&count.to_le_bytes());
    table
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| panic!("{text:?}"))
}
