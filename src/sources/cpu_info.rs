//! The parser of `/proc/cpuinfo`: vendor, family, model and stepping of the processor.
//!
//! Every field is optional: other architectures than x86 have other fields, and the values are then empty.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::domain::Grade;

/// The kernel writes at most this much for one call. The file has a paragraph for each processor, and takes long to write
/// where there are many.
const CHUNK_BYTES: usize = 4096;

/// The longest paragraph that is read.
const MAX_PARAGRAPH_BYTES: usize = 64 * 1024;

/// The first processor of `/proc/cpuinfo`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuInfo {
    /// "GenuineIntel", "AuthenticAMD", "HygonGenuine"; empty where unknown.
    pub vendor: String,
    pub family: u32,
    /// The model within the family.
    pub model: u32,
    /// The revision of the model.
    pub stepping: u32,
    /// Whether its name is that of a processor for servers: Xeon or EPYC.
    pub is_server: bool,
    /// Whether the machine is a virtual machine.
    pub is_guest: bool,
    /// Whether SGX is enabled.
    pub has_sgx: bool,
}

impl CpuInfo {
    /// Reads `cpuinfo` under `proc_root`. All fields are empty if it does not exist.
    pub fn read(proc_root: &Path) -> Self {
        let file = File::open(proc_root.join("cpuinfo"));
        Self::parse(&file.and_then(read_first_paragraph).unwrap_or_default())
    }

    pub(super) fn parse(text: &str) -> Self {
        let first = text.split("\n\n").next().unwrap_or("");
        let field = |name: &str| {
            first.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.trim() == name)
        };
        let number = |name| field(name).and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0);
        let has_flag = |flag: &str| {
            field("flags").is_some_and(|(_, flags)| flags.split_whitespace().any(|name| name == flag))
        };
        let is_server_name = |(_, name): (_, &str)| name.contains("Xeon") || name.contains("EPYC");
        Self {
            vendor: field("vendor_id").map(|(_, value)| value.trim().to_owned()).unwrap_or_default(),
            family: number("cpu family"),
            model: number("model"),
            stepping: number("stepping"),
            is_server: field("model name").is_some_and(is_server_name),
            is_guest: has_flag("hypervisor"),
            has_sgx: has_flag("sgx"),
        }
    }

    /// The grade of this processor's RAPL counters. Intel measures since Haswell and modelled before (Hackenberg et al.
    /// 2015); AMD models (Schöne et al. 2021).
    pub fn rapl_grade(&self) -> Grade {
        // Sandy Bridge, Sandy Bridge-EP, Ivy Bridge, Ivy Bridge-EP.
        let before_haswell = self.family == 6 && matches!(self.model, 0x2A | 0x2D | 0x3A | 0x3E);
        if self.vendor == "GenuineIntel" && !before_haswell { Grade::Measured } else { Grade::Modelled }
    }
}

/// The text up to an empty line, and some of what follows.
fn read_first_paragraph(mut from: impl Read) -> io::Result<String> {
    let mut text = Vec::new();
    while !text.windows(2).any(|end| end == b"\n\n") && text.len() < MAX_PARAGRAPH_BYTES {
        let read = text.len();
        text.resize(read + CHUNK_BYTES, 0);
        let length = from.read(&mut text[read..])?;
        text.truncate(read + length);
        if length == 0 {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts the bytes that are read, of which each call gives a few.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let length = self.0.len().min(into.len()).min(7);
            let (now, later) = self.0.split_at(length);
            into[..length].copy_from_slice(now);
            (self.0, self.1) = (later, self.1 + length);
            Ok(length)
        }
    }

    #[test]
    fn only_the_first_processor_is_read() {
        let one = "vendor_id\t: GenuineIntel\nmodel\t\t: 85\nflags\t\t: fpu sgx\n";
        let mut slow = Slow(one.as_bytes(), 0);
        let alone = CpuInfo::parse(&read_first_paragraph(&mut slow).unwrap());
        assert_eq!((alone.model, alone.has_sgx, slow.1), (85, true, one.len()));
        let many = format!("{one}\n").repeat(100);
        let mut slow = Slow(many.as_bytes(), 0);
        assert_eq!(CpuInfo::parse(&read_first_paragraph(&mut slow).unwrap()), alone);
        assert!(slow.1 < one.len() + 10, "{} bytes were read", slow.1);
    }

    #[test]
    fn amd_is_modelled_and_intel_measured_since_haswell() {
        let grade = |vendor: &str, model: u32| {
            CpuInfo::parse(&format!("vendor_id\t: {vendor}\ncpu family\t: 6\nmodel\t\t: {model}\n"))
                .rapl_grade()
        };
        assert_eq!(grade("GenuineIntel", 0x3C), Grade::Measured);
        assert_eq!(grade("GenuineIntel", 0x2A), Grade::Modelled);
        assert_eq!(grade("AuthenticAMD", 17), Grade::Modelled);
        assert_eq!(grade("HygonGenuine", 1), Grade::Modelled);
    }

    #[test]
    fn a_guest_is_known_by_its_flag_and_an_empty_file_gives_the_default() {
        assert!(CpuInfo::parse("vendor_id : X\nflags : fpu hypervisor rdrand\n").is_guest);
        assert!(!CpuInfo::parse("vendor_id : X\nflags : fpu\n\nflags : hypervisor\n").is_guest);
        assert!(CpuInfo::parse("vendor_id : X\nflags : fpu sgx sgx_lc\n").has_sgx);
        assert!(!CpuInfo::parse("vendor_id : X\nflags : fpu sgx_lc\n").has_sgx);
        assert_eq!(CpuInfo::parse(""), CpuInfo::default());
    }

    #[test]
    fn a_processor_for_servers_is_known_by_its_name() {
        let is_server = |name: &str| CpuInfo::parse(&format!("model\t: 1\nmodel name\t: {name}\n")).is_server;
        assert!(
            is_server("AMD EPYC 7601 32-Core Processor") && is_server("Intel Xeon Processor (Skylake, IBRS)")
        );
        assert!(!is_server("AMD Ryzen 7 1700 Eight-Core Processor") && !is_server(""));
        let stepping = CpuInfo::parse("model\t\t: 85\nmodel name\t: X\nstepping\t: 7\n").stepping;
        assert_eq!(stepping, 7);
    }
}
