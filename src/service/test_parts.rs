//! The parts of a service that tests build without sources: settings, a store, and domains that the test feeds.

use std::hash::{BuildHasherDefault, DefaultHasher};
use std::path::Path;
use std::time::{Duration, Instant};

use super::access::AccessPolicy;
use super::domain_assumptions::AssumptionSettings;
use super::readings::ReadingCollector;
use super::startup::ServiceSettings;
use crate::attribution::{AttributionSettings, DomainInputs};
use crate::config::{AccessGroups, Limits};
use crate::domain::{Domain, DomainKind, Grade};
use crate::process_usage::KernelRoots;
use crate::store::{Store, StoreSettings, SyncMode};

/// Hashes without random keys.
pub(crate) type FixedHashes = BuildHasherDefault<DefaultHasher>;

/// The default settings with these limits.
pub(crate) fn service_settings(limits: Limits) -> ServiceSettings {
    ServiceSettings {
        attribution: AttributionSettings::default(),
        limits,
        policy: AccessPolicy::new(&AccessGroups::default()),
        history_ns: 16_000_000_000,
        roots: KernelRoots { proc_root: "/proc".into(), sysfs_root: "/sys".into() },
        nvml_library: None,
        assumptions: AssumptionSettings::default(),
    }
}

/// A store in `directory` that keeps what a test writes.
pub(crate) fn store_settings(directory: &Path) -> StoreSettings {
    StoreSettings {
        directory: directory.to_owned(),
        max_age: Duration::from_secs(3600),
        max_bytes: 1 << 30,
        max_waiting_bytes: 64 << 20,
        sync: SyncMode::Normal,
        sync_interval: Duration::from_secs(1),
        boot_id: String::new(),
    }
}

/// Waits until a store has opened its database: on a slow disk the one before it may still write, and holds the directory
/// until then.
pub(crate) fn wait_until_open(store: &Store) {
    let give_up = Instant::now() + Duration::from_secs(60);
    while !store.health().durable {
        assert!(Instant::now() < give_up, "the store does not open: {:?}", store.health().reason);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A collector without samplers.
pub(crate) fn no_readings() -> ReadingCollector {
    ReadingCollector::new(Vec::new(), Vec::new(), |_| ())
}

/// A package below 400 W.
pub(crate) fn package(name: &str) -> Domain {
    Domain {
        name: name.to_owned(),
        kind: DomainKind::Package,
        source: "replay".into(),
        device: None,
        parent: None,
        grade: Grade::Measured,
        ceiling_mw: Some(400_000),
        latency_ns: 0,
        quantum_uj: 1,
    }
}

/// Adds live packages of these names, which are parts of the total.
pub(crate) fn add_packages(mut inputs: DomainInputs<'_>, names: &[&str]) {
    for (index, name) in names.iter().enumerate() {
        inputs.add_domain(package(name));
        inputs.set_live(index, true);
        inputs.set_counted(index, true);
    }
}
