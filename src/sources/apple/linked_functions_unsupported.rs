//! Apple's functions where the system is not Apple's: absent.

use super::functions_ffi::AppleFunctions;

/// Says so.
pub fn load_functions() -> Result<AppleFunctions, String> {
    Err("only macOS has it".into())
}
