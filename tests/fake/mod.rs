//! A fake `/sys` and `/proc` in a temporary directory.

#![allow(dead_code, reason = "each test program uses its part")]

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use wattspan::sources::SourceSettings;

/// The two root directories.
pub struct FakeSysfs {
    root: TempDir,
}

impl FakeSysfs {
    pub fn new() -> Self {
        let fake_sysfs = Self { root: tempfile::tempdir().unwrap() };
        fs::create_dir_all(fake_sysfs.sysfs()).unwrap();
        fs::create_dir_all(fake_sysfs.proc()).unwrap();
        fake_sysfs
    }

    pub fn sysfs(&self) -> PathBuf {
        self.root.path().join("sys")
    }

    pub fn proc(&self) -> PathBuf {
        self.root.path().join("proc")
    }

    /// Settings that refer only to these roots and the sources in `enabled`.
    pub fn settings(&self, enabled: &[&str]) -> SourceSettings {
        SourceSettings {
            sysfs_root: self.sysfs(),
            proc_root: self.proc(),
            enabled: enabled.iter().map(|name| (*name).to_owned()).collect(),
            ..SourceSettings::default()
        }
    }

    /// Writes a file under `/sys`.
    pub fn sys_file(&self, path: &str, text: &str) {
        write(&self.sysfs().join(path), text);
    }

    /// Writes a file under `/proc`.
    pub fn proc_file(&self, path: &str, text: &str) {
        write(&self.proc().join(path), text);
    }

    /// Adds a powercap zone with its name, range and counter.
    pub fn zone(&self, id: &str, name: &str, range_uj: &str, energy_uj: u64) {
        let zone = format!("class/powercap/{id}");
        self.sys_file(&format!("{zone}/name"), &format!("{name}\n"));
        self.sys_file(&format!("{zone}/max_energy_range_uj"), &format!("{range_uj}\n"));
        self.energy(id, energy_uj);
    }

    /// Sets a zone's counter.
    pub fn energy(&self, id: &str, energy_uj: u64) {
        self.sys_file(&format!("class/powercap/{id}/energy_uj"), &format!("{energy_uj}\n"));
    }

    /// Sets the processor's vendor.
    pub fn vendor(&self, vendor: &str) {
        let text = format!(
            "processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: 6\nmodel\t\t: 106\nflags\t\t: fpu\n"
        );
        self.proc_file("cpuinfo", &text);
    }
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    // Written in place, as the kernel does: an open descriptor sees the new text.
    fs::write(path, text).unwrap();
}
