//! Apple's functions on other systems: unavailable.

use super::functions_ffi::AppleFunctions;

/// Reports that the functions are unavailable.
pub fn load_functions() -> Result<AppleFunctions, String> {
    Err("available on macOS only".into())
}
