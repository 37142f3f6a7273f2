//! `wattspand` as its clients see it: socket, D-Bus, access, quotas, store, and hostile clients.

#[cfg(target_os = "linux")]
#[path = "../fake/faults/mod.rs"]
mod fault_library;
#[cfg(target_os = "linux")]
#[path = "../faulty_fs/mod.rs"]
mod faulty_fs;
#[cfg(target_os = "linux")]
#[path = "../support/ground_truth.rs"]
mod ground_truth;
#[cfg(target_os = "linux")]
#[path = "../other_user/mod.rs"]
mod other_user;
#[path = "../support/programs.rs"]
mod programs;
#[path = "../support/mod.rs"]
mod support;
#[cfg(target_os = "linux")]
#[path = "../support/test_bus.rs"]
mod test_bus;

#[cfg(target_os = "linux")]
mod access;
#[cfg(target_os = "linux")]
mod access_table;
mod assumptions;
mod attribution;
mod contract;
#[cfg(target_os = "linux")]
mod dbus;
#[cfg(target_os = "linux")]
mod dbus_flood;
#[cfg(target_os = "linux")]
mod dbus_polkit;
#[cfg(target_os = "linux")]
mod disk_faults;
mod hostile_client;
#[cfg(target_os = "linux")]
mod hostile_users;
mod numbers;
#[cfg(target_os = "linux")]
mod power_cuts;
mod processes;
mod program;
#[cfg(target_os = "linux")]
mod quotas;
#[cfg(target_os = "linux")]
mod resource_faults;
mod service_manager;
mod store;
mod sums;
#[cfg(target_os = "linux")]
mod system_calls;
mod varlink_interop;
