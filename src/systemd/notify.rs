//! Notifications to the service manager: ready, reloading, stopping, watchdog (sd_notify(3)).
//!
//! Owns the socket that NOTIFY_SOCKET names. Without that variable, all functions do nothing. The crate
//! sd-notify is not used: it cannot send to an abstract address, and reads the environment for each message.
//! Sending never blocks.

use std::os::unix::net::UnixDatagram;

use super::notify_address as address;
use crate::clock;

/// The service manager, if there is one.
#[derive(Debug, Default)]
pub struct ServiceManager {
    socket: Option<UnixDatagram>,
    /// The service manager ends the daemon if no watchdog message arrives for this time.
    watchdog_timeout_ns: Option<u64>,
}

impl ServiceManager {
    /// Reads the environment. An unreachable socket is treated as absent.
    pub fn from_environment() -> Self {
        let name = std::env::var_os("NOTIFY_SOCKET");
        let socket = name.and_then(|name| address::connect(name.as_ref()).ok());
        let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog_ns = number("WATCHDOG_USEC").filter(|_| ours).map(|us| us.saturating_mul(1000));
        Self { socket, watchdog_timeout_ns: watchdog_ns }
    }

    /// Whether there is a service manager.
    pub fn is_present(&self) -> bool {
        self.socket.is_some()
    }

    /// Interval of the watchdog messages: a third of the timeout, so that one may be late.
    pub fn watchdog_interval_ns(&self) -> Option<u64> {
        self.socket.as_ref()?;
        self.watchdog_timeout_ns.map(|ns| (ns / 3).max(1))
    }

    /// The daemon is ready. `systemctl status` shows `status`.
    pub fn notify_ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}\n", status.replace('\n', " ")));
    }

    /// The configuration is being reloaded; [`ServiceManager::notify_ready`] follows.
    pub fn notify_reloading(&self) {
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}\n", clock::monotonic_ns() / 1000));
    }

    /// Shutdown has begun.
    pub fn notify_stopping(&self) {
        self.send("STOPPING=1\nSTATUS=Sending outstanding replies\n");
    }

    /// The daemon makes progress.
    pub fn notify_watchdog(&self) {
        self.send("WATCHDOG=1\n");
    }

    fn send(&self, message: &str) {
        if let Some(socket) = &self.socket {
            // If the queue is full, the message is lost; the next one follows.
            let _ = socket.send(message.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager() -> (ServiceManager, UnixDatagram) {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        (ServiceManager { socket: Some(ours), watchdog_timeout_ns: Some(9_000_000) }, theirs)
    }

    fn received(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 256];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    #[test]
    fn a_newline_in_the_status_cannot_forge_a_variable() {
        let (manager, theirs) = manager();
        manager.notify_ready("measures a\nMAINPID=1");
        assert_eq!(received(&theirs), "READY=1\nSTATUS=measures a MAINPID=1\n");
    }

    #[test]
    fn a_reload_notification_has_a_monotonic_timestamp() {
        let (manager, theirs) = manager();
        manager.notify_reloading();
        let text = received(&theirs);
        let since = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().trim_end();
        assert!(since.parse::<u64>().is_ok(), "{text}");
    }

    #[test]
    fn the_watchdog_interval_is_a_third_of_the_timeout() {
        assert_eq!(manager().0.watchdog_interval_ns(), Some(3_000_000));
        assert_eq!(
            ServiceManager { socket: None, watchdog_timeout_ns: Some(9) }.watchdog_interval_ns(),
            None
        );
        ServiceManager::default().notify_watchdog();
    }
}
