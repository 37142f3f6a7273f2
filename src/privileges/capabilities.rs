//! Dropping of privileges on Linux: capabilities, the means to regain them, and the system calls that use
//! them.
//!
//! Capabilities belong to a thread, so this runs before a sampler's thread starts. Threads that discovery
//! started keep theirs: those of NVIDIA's library, and one that opens a source, until it returns.

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};
use wattspan_client::protocol::ProcessPrivileges;

use super::required_privileges::RequiredPrivileges;
use super::seccomp_ffi;

/// Drops all privileges that are not required. The result states what was kept. That is no error: a daemon
/// with more privileges still measures, and `doctor` reports them.
pub fn drop_privileges(required: &RequiredPrivileges) -> ProcessPrivileges {
    let before = permitted_capabilities();
    let limit = getrlimit(Resource::Rtprio).current;
    if limit.is_some_and(|limit| limit < required.realtime_priority) {
        let wanted = Some(required.realtime_priority);
        // Fails without CAP_SYS_RESOURCE. Then the service manager's limit applies to the samplers.
        let _ = setrlimit(Resource::Rtprio, Rlimit { current: wanted, maximum: wanted });
    }
    drop_capabilities(before & required_capabilities(required));
    if required.serves_other_users {
        // Kernels of the last ten years support this. The result is read back below.
        let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    }
    // The filter also makes a capability useless that could not be dropped.
    let refused = seccomp_ffi::install_filter(seccomp_ffi::ALL_THREADS).unwrap_or_default();
    ProcessPrivileges {
        refused_system_calls: refused.into_iter().map(str::to_owned).collect(),
        ..current_privileges()
    }
}

/// Reads the privileges of this process.
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
    // Root owns the files of the zones and can read them without a capability.
    if required.powercap && !root {
        kept |= CapabilitySet::DAC_READ_SEARCH;
    }
    // If root starts the daemon, the state directory may belong to another user, as packages install it.
    use std::os::unix::fs::MetadataExt;
    if root && std::fs::metadata(required.state_dir).is_ok_and(|found| found.uid() != 0) {
        kept |= CapabilitySet::DAC_OVERRIDE;
    }
    // If the limit could not be raised (no CAP_SYS_RESOURCE, as in containers), the samplers need this for
    // their priority.
    if getrlimit(Resource::Rtprio).current.is_some_and(|limit| limit < required.realtime_priority) {
        kept |= CapabilitySet::SYS_NICE;
    }
    kept
}

fn permitted_capabilities() -> CapabilitySet {
    rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.permitted)
}

/// A step fails if a service manager did it before. The final state is read back.
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
