//! Apple's functions where the system is not Apple's: absent.

use super::apple_calls_ffi::AppleFunctions;

/// Says so.
pub fn load_functions() -> Result<AppleFunctions, String> {
    Err("only macOS has it".into())
}
