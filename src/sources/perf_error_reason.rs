//! The reason and the remedy if perf cannot be used.
//!
//! Covers a missing `power` PMU and a failed `perf_event_open`. Reads only what explains the failure: the paranoid level,
//! the processor and the effective user.

use std::env;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use super::cpu_info::CpuInfo;

/// The reason for a missing `power` PMU in `folder`.
pub fn pmu_error_reason(error: &io::Error, folder: &Path, proc_root: &Path) -> String {
    if error.kind() != ErrorKind::NotFound {
        return format!("the power PMU cannot be used: {error}");
    }
    let missing = format!("the kernel offers no power PMU ({} is missing)", folder.display());
    let cpu_info = CpuInfo::read(proc_root);
    if cpu_info.is_guest {
        format!("{missing}; this is a virtual machine, whose host does not pass the counters on")
    } else if cpu_info.vendor.is_empty() {
        format!("{missing}; only x86 processors have one")
    } else {
        format!("{missing}; load its module: sudo modprobe rapl")
    }
}

/// The reason why an event of an existing PMU could not be opened on `cpu`.
pub fn event_error_reason(error: &io::Error, cpu: usize, proc_root: &Path) -> String {
    let remedy = match error.kind() {
        ErrorKind::PermissionDenied => {
            permission_advice(rustix::process::geteuid().is_root(), paranoid_level(proc_root))
        }
        ErrorKind::NotFound => "none of its events can be used".into(),
        _ if error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) => {
            "raise the limit of open files: ulimit -n 1024".into()
        }
        _ => "the kernel lists the PMU, but the processor does not support it".into(),
    };
    format!("perf_event_open on CPU {cpu}: {error}; {remedy}")
}

fn paranoid_level(proc_root: &Path) -> Option<i32> {
    fs::read_to_string(proc_root.join("sys/kernel/perf_event_paranoid")).ok()?.trim().parse().ok()
}

fn permission_advice(root: bool, paranoid: Option<i32>) -> String {
    if root {
        return "a container or a system call filter forbids it even to root; start the container with \
                --cap-add=PERFMON, or allow perf_event_open in its seccomp profile"
            .into();
    }
    let level = paranoid.map_or_else(|| "unknown".into(), |level| level.to_string());
    let program = env::current_exe().map_or_else(|_| "wattspand".into(), |path| path.display().to_string());
    format!(
        "kernel.perf_event_paranoid is {level}, which forbids energy counters; give the program the capability: \
         sudo setcap cap_perfmon=ep {program} (or for all users: sudo sysctl kernel.perf_event_paranoid=0)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proc_root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("sys/kernel")).unwrap();
        for (name, text) in files {
            fs::write(root.path().join(name), text).unwrap();
        }
        root
    }

    #[test]
    fn a_missing_module_a_guest_and_another_architecture_are_distinguished() {
        let missing = io::Error::from(ErrorKind::NotFound);
        let folder = Path::new("/sys/bus/event_source/devices/power");
        let metal = proc_root(&[("cpuinfo", "vendor_id : GenuineIntel\nflags : fpu\n")]);
        assert!(pmu_error_reason(&missing, folder, metal.path()).ends_with("sudo modprobe rapl"));
        let guest = proc_root(&[("cpuinfo", "vendor_id : GenuineIntel\nflags : hypervisor\n")]);
        assert!(pmu_error_reason(&missing, folder, guest.path()).contains("virtual machine"));
        let arm = proc_root(&[("cpuinfo", "CPU implementer : 0x41\n")]);
        assert!(pmu_error_reason(&missing, folder, arm.path()).contains("only x86"));
    }

    #[test]
    fn a_broken_file_is_named() {
        let broken = io::Error::new(ErrorKind::InvalidData, "/sys/x/cpumask: not a list of CPUs");
        assert!(
            pmu_error_reason(&broken, Path::new("/sys/x"), Path::new("/proc")).contains("/sys/x/cpumask")
        );
    }

    #[test]
    fn the_paranoid_level_and_both_ways_around_it_are_named() {
        let root = proc_root(&[("sys/kernel/perf_event_paranoid", "2\n")]);
        let text = permission_advice(false, paranoid_level(root.path()));
        for part in
            ["perf_event_paranoid is 2", "sudo setcap cap_perfmon=ep ", "sysctl kernel.perf_event_paranoid=0"]
        {
            assert!(text.contains(part), "{text}");
        }
        assert!(permission_advice(true, Some(2)).contains("--cap-add=PERFMON"));
        assert!(permission_advice(false, None).contains("is unknown"));
    }

    #[test]
    fn the_limit_of_open_files_and_a_dead_pmu_are_named() {
        let root = proc_root(&[]);
        let say = |code| event_error_reason(&io::Error::from_raw_os_error(code), 64, root.path());
        assert!(say(rustix::io::Errno::MFILE.raw_os_error()).contains("ulimit -n"));
        assert!(say(rustix::io::Errno::INVAL.raw_os_error()).contains("CPU 64"));
        assert!(
            say(rustix::io::Errno::ACCESS.raw_os_error()).contains("PERFMON")
                || say(rustix::io::Errno::ACCESS.raw_os_error()).contains("cap_perfmon")
        );
    }
}
