//! The schedule of the service manager's watchdog notifications.
//!
//! Notifications come from the service's own thread, and only while every sampler's thread makes progress. A sampler that
//! waits in a driver makes progress: killing a process in a driver's call does not help and may take the device down.

use crate::systemd::notify::ServiceManager;

#[derive(Debug, Default)]
pub(crate) struct Watchdog {
    due_ns: u64,
}

impl Watchdog {
    /// The time of the next notification; `None` without a watchdog.
    pub(crate) fn due_ns(&self, service_manager: &ServiceManager) -> Option<u64> {
        service_manager.watchdog_interval_ns().map(|_| self.due_ns)
    }

    /// Notifies the service manager if that is due. `overdue_ns` is the time for which the slowest sampler has made no
    /// progress; from one watchdog interval on there is no notification.
    pub(crate) fn notify_if_due(
        &mut self,
        service_manager: &ServiceManager,
        now_ns: u64,
        overdue_ns: impl FnOnce() -> u64,
    ) {
        let Some(interval_ns) = service_manager.watchdog_interval_ns().filter(|_| now_ns >= self.due_ns)
        else {
            return;
        };
        self.due_ns = now_ns + interval_ns;
        if overdue_ns() < interval_ns {
            service_manager.notify_watchdog();
        }
    }
}
