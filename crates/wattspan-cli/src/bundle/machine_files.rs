//! The files of `/sys` and `/proc` that describe a machine's energy interfaces.
//!
//! Only names on the lists of this file are read, so that a new file of a driver enters no bundle unseen. Files of serial
//! numbers are read to know what to hide, and are not part of the result.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::pseudonyms::IdentifierKind;

/// Largest file that is read; sysfs shows at most a page, `cpuinfo` of a large server is longer.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// What a file contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// Numbers alone, else it is treated as [`FileKind::Free`].
    Number,
    /// Text of the kernel or of a driver, or the name of a model.
    Kernel,
    /// Text of firmware or of a user.
    Free,
    /// An identifier as a whole.
    Identifier,
    /// A table of a driver.
    Binary,
}

/// A machine's files by their paths, which begin with `sys/` or `proc/`.
#[derive(Debug, Default)]
pub struct MachineFiles {
    pub files: BTreeMap<String, (FileKind, Vec<u8>)>,
    /// Symbolic links with the directories that they lead to.
    pub links: BTreeMap<String, String>,
    /// Files that exist and cannot be read, with the reason.
    pub unreadable: BTreeMap<String, String>,
    /// What identifies the machine and its users.
    pub identifiers: Vec<(IdentifierKind, String)>,
}

/// Reads the files below two roots.
pub fn collect(sysfs_root: &Path, proc_root: &Path) -> MachineFiles {
    let real = |root: &Path| fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
    let mut collector = Collector {
        sysfs_root: real(sysfs_root),
        proc_root: real(proc_root),
        found: MachineFiles::default(),
        seen: BTreeSet::new(),
    };
    collector.collect_identifiers();
    collector.collect_proc();
    collector.collect_cpus();
    collector.collect_classes();
    collector.found
}

struct Collector {
    sysfs_root: PathBuf,
    proc_root: PathBuf,
    found: MachineFiles,
    seen: BTreeSet<String>,
}

impl Collector {
    fn real_path(&self, path: &str) -> PathBuf {
        match path.split_once('/') {
            Some(("sys", rest)) => self.sysfs_root.join(rest),
            Some(("proc", rest)) => self.proc_root.join(rest),
            _ => self.sysfs_root.clone(),
        }
    }

    /// The names in a directory, sorted.
    fn list(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.real_path(path)).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// The directory that a link leads to, or `path` itself. Records the link.
    fn follow(&mut self, path: &str) -> Option<String> {
        let at = self.real_path(path);
        let is_link = fs::symlink_metadata(&at).ok()?.is_symlink();
        let target = fs::canonicalize(&at).ok().filter(|target| target.is_dir())?;
        if !is_link {
            return Some(path.to_owned());
        }
        let target = format!("sys/{}", target.strip_prefix(&self.sysfs_root).ok()?.to_str()?);
        self.found.links.insert(path.to_owned(), target.clone());
        Some(target)
    }

    fn read(&mut self, path: &str, kind: FileKind) {
        match read_limited(&self.real_path(path)) {
            Ok(bytes) => drop(self.found.files.insert(path.to_owned(), (kind, bytes))),
            Err(cause) if cause.kind() == ErrorKind::NotFound => (),
            Err(cause) => drop(self.found.unreadable.insert(path.to_owned(), cause.to_string())),
        }
    }

    /// Reads the files of a directory that `kind_of` names, and those of serial numbers as identifiers.
    fn read_dir(&mut self, path: &str, kind_of: fn(&str) -> Option<FileKind>) {
        for name in self.list(path) {
            let file = format!("{path}/{name}");
            if let Some(kind) = kind_of(&name) {
                self.read(&file, kind);
            }
            if is_identifier_file(&name) {
                self.add_identifier(IdentifierKind::Serial, &file);
            }
        }
    }

    fn add_identifier(&mut self, kind: IdentifierKind, path: &str) {
        if let Some(text) = read_limited(&self.real_path(path)).ok().and_then(|b| String::from_utf8(b).ok()) {
            self.found.identifiers.push((kind, text));
        }
    }

    fn collect_identifiers(&mut self) {
        for name in ["hostname", "domainname"] {
            self.add_identifier(IdentifierKind::Host, &format!("proc/sys/kernel/{name}"));
        }
        self.add_identifier(IdentifierKind::Serial, "proc/device-tree/serial-number");
        self.read_dir("sys/devices/virtual/dmi/id", dmi_file_kind);
        for name in self.list("sys/class/net") {
            self.add_identifier(IdentifierKind::Mac, &format!("sys/class/net/{name}/address"));
        }
    }

    fn collect_proc(&mut self) {
        let cpuinfo = read_limited(&self.proc_root.join("cpuinfo")).unwrap_or_default();
        let cpuinfo = String::from_utf8_lossy(&cpuinfo).into_owned();
        let serial = cpuinfo.lines().filter_map(|line| line.strip_prefix("Serial")?.split_once(':'));
        let serials: Vec<_> =
            serial.map(|(_, value)| (IdentifierKind::Serial, value.trim().to_owned())).collect();
        self.found.identifiers.extend(serials);
        let processor = first_processor(&cpuinfo);
        if !processor.is_empty() {
            self.found.files.insert("proc/cpuinfo".into(), (FileKind::Kernel, processor.into_bytes()));
        }
        self.read("proc/sys/kernel/osrelease", FileKind::Kernel);
        self.read("proc/sys/kernel/perf_event_paranoid", FileKind::Number);
    }

    fn collect_cpus(&mut self) {
        const CPUS: &str = "sys/devices/system/cpu";
        for name in self.list(CPUS) {
            if matches!(name.as_str(), "online" | "possible" | "present") {
                self.read(&format!("{CPUS}/{name}"), FileKind::Number);
            }
            let is_cpu = name.strip_prefix("cpu").is_some_and(|number| number.parse::<u32>().is_ok());
            for file in ["physical_package_id", "die_id"].iter().filter(|_| is_cpu) {
                self.read(&format!("{CPUS}/{name}/topology/{file}"), FileKind::Number);
            }
        }
    }

    fn collect_classes(&mut self) {
        for zone in self.list("sys/class/powercap") {
            self.collect_device(&format!("sys/class/powercap/{zone}"), powercap_file_kind);
        }
        for supply in self.list("sys/class/power_supply") {
            self.collect_device(&format!("sys/class/power_supply/{supply}"), supply_file_kind);
        }
        for card in self.list("sys/class/drm") {
            let is_card = card.strip_prefix("card").is_some_and(|number| number.parse::<u32>().is_ok());
            if is_card {
                self.collect_card(&format!("sys/class/drm/{card}"));
            }
        }
        for chip in self.list("sys/class/hwmon") {
            self.collect_device(&format!("sys/class/hwmon/{chip}"), hwmon_file_kind);
        }
        for pmu in self.list("sys/bus/event_source/devices") {
            if pmu.starts_with("power") || pmu.starts_with("cpu") || pmu == "msr" {
                let path = format!("sys/bus/event_source/devices/{pmu}");
                let Some(path) = self.follow(&path) else { continue };
                self.read_dir(&path, pmu_file_kind);
                self.read_dir(&format!("{path}/events"), event_file_kind);
                self.read_dir(&format!("{path}/format"), |_| Some(FileKind::Kernel));
            }
        }
        for module in self.list("sys/module") {
            if is_energy_driver(&module) {
                self.read(&format!("sys/module/{module}/version"), FileKind::Kernel);
            }
        }
    }

    /// A device of a class, and its parent in older layouts. Batteries of mice and headsets are left out: no source reads
    /// them, and their names are serial numbers.
    fn collect_device(&mut self, path: &str, kind_of: fn(&str) -> Option<FileKind>) {
        let Some(path) = self.follow(path) else { return };
        if self.is_peripheral(&path) {
            self.found.links.retain(|_, target| *target != path);
            return;
        }
        if !self.seen.insert(path.clone()) {
            return;
        }
        self.read_dir(&path, kind_of);
        if let Some(device) = self.follow(&format!("{path}/device")) {
            self.read_dir(&device, kind_of);
        }
    }

    /// Whether the device is the battery of a peripheral, or a sensor of one.
    fn is_peripheral(&self, path: &str) -> bool {
        let is_device =
            |at: &Path| fs::read(at.join("scope")).is_ok_and(|scope| scope.starts_with(b"Device"));
        let at = self.real_path(path);
        let parent = fs::canonicalize(at.join("device")).unwrap_or_default();
        at.ancestors()
            .take_while(|at| at.starts_with(&self.sysfs_root))
            .chain([parent.as_path()])
            .any(is_device)
    }

    fn collect_card(&mut self, path: &str) {
        let Some(card) = self.follow(path) else { return };
        let Some(device) = self.follow(&format!("{card}/device")) else { return };
        self.read_dir(&device, card_file_kind);
        for chip in self.list(&format!("{device}/hwmon")) {
            self.collect_device(&format!("{device}/hwmon/{chip}"), hwmon_file_kind);
        }
    }
}

fn read_limited(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn is_identifier_file(name: &str) -> bool {
    ["serial", "uuid", "unique_id", "asset_tag"].iter().any(|part| name.contains(part))
}

/// The first processor of `cpuinfo`, without the fields that differ between machines of one model.
fn first_processor(cpuinfo: &str) -> String {
    const FIELDS: [&str; 13] = [
        "processor",
        "vendor_id",
        "cpu family",
        "model",
        "model name",
        "stepping",
        "microcode",
        "flags",
        "CPU implementer",
        "CPU architecture",
        "CPU variant",
        "CPU part",
        "CPU revision",
    ];
    let is_kept = |line: &&str| line.split_once(':').is_some_and(|(field, _)| FIELDS.contains(&field.trim()));
    let first = cpuinfo.trim_start().split("\n\n").next().unwrap_or_default();
    first.lines().filter(is_kept).map(|line| format!("{line}\n")).collect()
}

fn dmi_file_kind(name: &str) -> Option<FileKind> {
    let is_model = matches!(
        name,
        "sys_vendor" | "product_name" | "board_vendor" | "board_name" | "bios_vendor" | "bios_date"
    );
    is_model.then_some(FileKind::Kernel)
}

fn powercap_file_kind(name: &str) -> Option<FileKind> {
    match name {
        "name" => Some(FileKind::Kernel),
        "energy_uj" | "max_energy_range_uj" | "enabled" => Some(FileKind::Number),
        _ => name.strip_prefix("constraint_").map(|rest| match rest.ends_with("_name") {
            true => FileKind::Kernel,
            false => FileKind::Number,
        }),
    }
}

fn hwmon_file_kind(name: &str) -> Option<FileKind> {
    match name {
        "name" => return Some(FileKind::Kernel),
        "update_interval" => return Some(FileKind::Number),
        _ => (),
    }
    let (channel, attribute) = name.split_once('_')?;
    let sensor = channel.trim_end_matches(|c: char| c.is_ascii_digit());
    if sensor.len() == channel.len() || !matches!(sensor, "energy" | "power" | "in" | "curr") {
        return None;
    }
    match attribute {
        "label" | "oem_info" | "model_number" => Some(FileKind::Free),
        "input" | "average" | "average_interval" | "accuracy" | "enable" | "is_battery" | "cap"
        | "cap_min" | "cap_max" | "rated_max" | "max" | "crit" => Some(FileKind::Number),
        _ => None,
    }
}

fn supply_file_kind(name: &str) -> Option<FileKind> {
    match name {
        "type" | "scope" | "status" | "technology" => Some(FileKind::Kernel),
        "manufacturer" | "model_name" => Some(FileKind::Free),
        "online" | "present" => Some(FileKind::Number),
        _ => {
            let (quantity, attribute) = name.split_once('_')?;
            let is_number = matches!(quantity, "power" | "current" | "voltage" | "energy" | "charge")
                && matches!(attribute, "now" | "avg" | "full" | "full_design" | "min_design");
            is_number.then_some(FileKind::Number)
        }
    }
}

fn card_file_kind(name: &str) -> Option<FileKind> {
    match name {
        "vendor" | "device" | "subsystem_vendor" | "subsystem_device" | "revision" => Some(FileKind::Kernel),
        "unique_id" => Some(FileKind::Identifier),
        "gpu_metrics" => Some(FileKind::Binary),
        _ => None,
    }
}

fn pmu_file_kind(name: &str) -> Option<FileKind> {
    matches!(name, "type" | "cpumask" | "cpus").then_some(FileKind::Number)
}

fn event_file_kind(name: &str) -> Option<FileKind> {
    Some(if name.ends_with(".scale") { FileKind::Number } else { FileKind::Kernel })
}

fn is_energy_driver(module: &str) -> bool {
    const PREFIXES: [&str; 9] =
        ["amd", "i915", "ina2", "ina3", "intel_rapl", "nvidia", "rapl", "xe", "zenergy"];
    const NAMES: [&str; 2] = ["acpi_power_meter", "nouveau"];
    NAMES.contains(&module) || PREFIXES.iter().any(|prefix| module.starts_with(prefix))
}
