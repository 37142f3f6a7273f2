//! Apple's functions where the system is not Apple's: absent.

use super::apple_calls_ffi::Calls;

/// Says so.
pub fn calls() -> Result<Calls, String> {
    Err("only macOS has it".into())
}
