//! The description of PMUs and their events in sysfs.
//!
//! Reads `bus/event_source/devices/<pmu>`: `type`, `cpumask`, `events/NAME` with `.scale` and `.unit`
//! (Documentation/ABI/testing/sysfs-bus-event_source-devices-events). Opens no event. An event whose unit is not an exact
//! fraction is skipped with the reason.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::cpu_list::parse_cpu_list;
use super::energy_unit::EnergyUnit;

/// A performance monitoring unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pmu {
    /// `perf_event_attr.type`.
    pub type_id: u32,
    /// The CPUs on which its events are opened, once per CPU.
    pub cpus: Vec<usize>,
    /// Its energy events, sorted by name.
    pub events: Vec<PmuEvent>,
    /// Reasons of the listed events that cannot be used.
    pub unusable_events: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PmuEvent {
    /// "energy-pkg".
    pub name: String,
    /// `perf_event_attr.config`.
    pub config: u64,
    /// The energy of one count.
    pub unit: EnergyUnit,
}

/// The directory of PMUs under `sysfs_root`.
pub fn pmu_dir(sysfs_root: &Path, pmu: &str) -> PathBuf {
    sysfs_root.join("bus/event_source/devices").join(pmu)
}

impl Pmu {
    /// Reads the PMU in `folder`.
    ///
    /// # Errors
    /// `NotFound` if the PMU does not exist; `InvalidData`, with the file, if a file is invalid.
    pub fn read(folder: &Path) -> io::Result<Pmu> {
        let kind = read_type(folder)?;
        let cpus = parse_cpu_list(&fs::read_to_string(folder.join("cpumask"))?)
            .filter(|cpus| !cpus.is_empty())
            .ok_or_else(|| invalid_data(&folder.join("cpumask"), "not a list of CPUs"))?;
        let (mut events, mut refused) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(folder.join("events"))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if !name.starts_with("energy-") || name.contains('.') {
                continue;
            }
            match PmuEvent::read(folder, &name) {
                Ok(event) => events.push(event),
                Err(error) => refused.push(error.to_string()),
            }
        }
        events.sort_by(|a, b| a.name.cmp(&b.name));
        refused.sort();
        Ok(Pmu { type_id: kind, cpus, events, unusable_events: refused })
    }
}

impl PmuEvent {
    fn read(folder: &Path, name: &str) -> io::Result<PmuEvent> {
        let path = folder.join("events").join(name);
        let config = read_config(&path)?;
        let unit_path = folder.join("events").join(format!("{name}.unit"));
        let unit = fs::read_to_string(&unit_path)?;
        if unit.trim() != "Joules" {
            return Err(invalid_data(&unit_path, "the unit is not Joules"));
        }
        let scale_path = folder.join("events").join(format!("{name}.scale"));
        let unit = EnergyUnit::parse_joules(fs::read_to_string(&scale_path)?.trim())
            .ok_or_else(|| invalid_data(&scale_path, "not a positive decimal number"))?;
        Ok(PmuEvent { name: name.to_owned(), config, unit })
    }
}

/// `perf_event_attr.type` of the PMU in `folder`.
pub fn read_type(folder: &Path) -> io::Result<u32> {
    let path = folder.join("type");
    fs::read_to_string(&path)?.trim().parse().map_err(|_| invalid_data(&path, "not a number"))
}

/// Reads the config of an event.
pub fn read_config(path: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    parse_config(&text).ok_or_else(|| invalid_data(path, "not of the form event=0x02"))
}

/// Parses the config of an event described as `event=0x02`. The `power` and `msr` PMUs have this one term, in the low bits.
pub fn parse_config(text: &str) -> Option<u64> {
    let value = text.trim().strip_prefix("event=")?;
    match value.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => value.parse().ok(),
    }
}

fn invalid_data(path: &Path, what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCALE: &str = "2.3283064365386962890625e-10\n";

    fn power(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("events")).unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn a_power_pmu_is_read_whole() {
        let folder = power(&[
            ("type", "9\n"),
            ("cpumask", "0,64\n"),
            ("events/energy-ram", "event=0x03\n"),
            ("events/energy-ram.scale", SCALE),
            ("events/energy-ram.unit", "Joules\n"),
            ("events/energy-pkg", "event=0x02\n"),
            ("events/energy-pkg.scale", SCALE),
            ("events/energy-pkg.unit", "Joules\n"),
        ]);
        let pmu = Pmu::read(folder.path()).unwrap();
        let unit = EnergyUnit::joules_over_power_of_two(32).unwrap();
        assert_eq!((pmu.type_id, pmu.cpus.as_slice()), (9, [0, 64].as_slice()));
        assert_eq!(
            pmu.events,
            [
                PmuEvent { name: "energy-pkg".into(), config: 2, unit },
                PmuEvent { name: "energy-ram".into(), config: 3, unit },
            ]
        );
        assert!(pmu.unusable_events.is_empty());
    }

    #[test]
    fn an_event_that_cannot_be_expressed_is_left_out_with_its_file() {
        let folder = power(&[
            ("type", "9\n"),
            ("cpumask", "0\n"),
            ("events/energy-pkg", "event=0x02,umask=0x1\n"),
            ("events/energy-cores", "event=0x01\n"),
            ("events/energy-cores.scale", SCALE),
            ("events/energy-cores.unit", "Watts\n"),
            ("events/energy-ram", "event=0x03\n"),
            ("events/energy-ram.scale", "much\n"),
            ("events/energy-ram.unit", "Joules\n"),
        ]);
        let pmu = Pmu::read(folder.path()).unwrap();
        assert!(pmu.events.is_empty());
        assert_eq!(pmu.unusable_events.len(), 3);
        for (reason, file) in
            pmu.unusable_events.iter().zip(["energy-cores.unit", "energy-pkg", "energy-ram.scale"])
        {
            assert!(reason.contains(file), "{reason}");
        }
    }

    #[test]
    fn a_pmu_without_cpus_or_type_says_which_file_is_wrong() {
        let folder = power(&[("type", "9\n"), ("cpumask", "\n")]);
        assert!(Pmu::read(folder.path()).unwrap_err().to_string().contains("cpumask"));
        let folder = power(&[("type", "nine\n"), ("cpumask", "0\n")]);
        assert!(Pmu::read(folder.path()).unwrap_err().to_string().contains("type"));
        assert_eq!(Pmu::read(Path::new("/nonexistent")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
