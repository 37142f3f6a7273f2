//! What the units of systemd and the programs assume of each other.

use std::time::Duration;

use super::documented_commands::{read, root};

/// The value of a setting of the daemon's unit in seconds or as a number.
fn setting(name: &str) -> u64 {
    let unit = read(&root().join("systemd/wattspand.service"));
    let value = unit.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("{name} is not set")).parse().unwrap()
}

#[test]
fn systemd_does_not_give_up_while_resources_are_missing() {
    let wait = wattspan::daemon::SHORTAGE_WAIT;
    let burst = u32::try_from(setting("StartLimitBurst")).unwrap();
    assert!(wait * burst > Duration::from_secs(setting("StartLimitIntervalSec")), "it gives up");
    let discovery = wattspan::service::DAEMON_DISCOVERY_TIMEOUT;
    assert!(wait + 2 * discovery < Duration::from_secs(setting("TimeoutStartSec")), "it kills the daemon");
    let unit = read(&root().join("systemd/wattspand.service"));
    let never = unit.lines().find_map(|line| line.strip_prefix("RestartPreventExitStatus=")).unwrap();
    // EX_OSERR, with which such a start ends.
    assert!(!never.split(' ').any(|status| status == "71"), "{never}");
}
