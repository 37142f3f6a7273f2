//! What a wait for sockets reports.

/// The readiness of one registered socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readiness {
    /// The key of its registration.
    pub key: usize,
    /// There is input, the end of the input, or an error.
    pub is_readable: bool,
    /// Both directions are shut down.
    pub is_interrupted: bool,
}

impl From<polling::Event> for Readiness {
    fn from(event: polling::Event) -> Self {
        Self { key: event.key, is_readable: event.readable, is_interrupted: event.is_interrupt() }
    }
}
