//! Giving up privilege under Linux: capabilities, the way back to them, and the system calls that need them.
//!
//! Owns the order of it. Capabilities belong to threads, so this comes before any sampler's thread. Threads that discovery
//! starts keep theirs: those of NVIDIA's library, and one that opens a source, until the opening returns.

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::process_privileges::{ProcessPrivileges, RequiredPrivileges};
use super::seccomp_ffi;

/// Gives up the rest. What cannot be given up is in what it returns, not an error: a meter that runs with more than it
/// needs still measures, and `doctor` shows it.
pub fn drop_privileges(required: &RequiredPrivileges) -> ProcessPrivileges {
    let before = permitted_capabilities();
    let limit = getrlimit(Resource::Rtprio).current;
    if limit.is_some_and(|limit| limit < required.realtime_priority) {
        let wanted = Some(required.realtime_priority);
        // Refused without CAP_SYS_RESOURCE; then the samplers run as the service manager lets them.
        let _ = setrlimit(Resource::Rtprio, Rlimit { current: wanted, maximum: wanted });
    }
    drop_capabilities(before & required_capabilities(required));
    if required.serves_other_users {
        // Fails in no kernel of the last ten years; what is so is read back below.
        let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    }
    // Whatever of the privilege could not be put down is good for nothing afterwards.
    let refused = seccomp_ffi::install_filter(seccomp_ffi::ALL_THREADS).unwrap_or_default();
    ProcessPrivileges {
        refused_system_calls: refused.into_iter().map(str::to_owned).collect(),
        ..current_privileges()
    }
}

/// What is so.
pub fn current_privileges() -> ProcessPrivileges {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let filtered =
        status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"));
    ProcessPrivileges {
        uid: rustix::process::geteuid().as_raw(),
        capabilities: permitted_capabilities().iter_names().map(|(name, _)| format!("CAP_{name}")).collect(),
        no_new_privileges: rustix::thread::no_new_privs().unwrap_or(false),
        dumpable: rustix::process::dumpable_behavior() != Ok(DumpableBehavior::NotDumpable),
        system_calls_filtered: filtered,
        refused_system_calls: Vec::new(),
    }
}

fn required_capabilities(required: &RequiredPrivileges) -> CapabilitySet {
    let root = rustix::process::geteuid().is_root();
    let mut kept = CapabilitySet::empty();
    // Root owns the zones' files, and its own files it may read without.
    if required.powercap && !root {
        kept |= CapabilitySet::DAC_READ_SEARCH;
    }
    // Root started by hand writes into a directory that a package gave to another user.
    use std::os::unix::fs::MetadataExt;
    if root && std::fs::metadata(required.state_dir).is_ok_and(|found| found.uid() != 0) {
        kept |= CapabilitySet::DAC_OVERRIDE;
    }
    // Where the limit could not be raised (no CAP_SYS_RESOURCE, as in containers) the samplers' priority needs this.
    if getrlimit(Resource::Rtprio).current.is_some_and(|limit| limit < required.realtime_priority) {
        kept |= CapabilitySet::SYS_NICE;
    }
    kept
}

fn permitted_capabilities() -> CapabilitySet {
    rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.permitted)
}

/// Each step may be refused where it was done before; the last one is what counts, and is read back.
fn drop_capabilities(kept: CapabilitySet) {
    let _ = rustix::thread::set_no_new_privs(true);
    let _ = rustix::thread::clear_ambient_capability_set();
    for (_, capability) in (CapabilitySet::all() - kept).iter_names() {
        let _ = rustix::thread::remove_capability_from_bounding_set(capability);
    }
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    let _ = rustix::thread::set_capabilities(None, sets);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_capabilities_cannot_be_regained() {
        let after = std::thread::spawn(|| {
            drop_capabilities(CapabilitySet::empty());
            let back = CapabilitySets {
                effective: CapabilitySet::PERFMON,
                permitted: CapabilitySet::PERFMON,
                inheritable: CapabilitySet::empty(),
            };
            assert!(rustix::thread::set_capabilities(None, back).is_err());
            current_privileges()
        });
        let after = after.join().unwrap();
        assert!(after.capabilities.is_empty(), "{:?}", after.capabilities);
        assert!(after.no_new_privileges);
    }

    #[test]
    fn reopening_powercap_zones_keeps_dac_read_search() {
        let dir = tempfile::tempdir().unwrap();
        let required = |powercap| RequiredPrivileges {
            powercap,
            state_dir: dir.path(),
            serves_other_users: false,
            realtime_priority: 0,
        };
        let root = rustix::process::geteuid().is_root();
        let kept_for_powercap = required_capabilities(&required(true));
        assert_eq!(kept_for_powercap.contains(CapabilitySet::DAC_READ_SEARCH), !root);
        assert_eq!(required_capabilities(&required(false)), CapabilitySet::empty());
    }
}
