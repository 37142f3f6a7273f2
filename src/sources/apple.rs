//! Where Apple's functions come from: the system's own, or a library that stands in for them.
//!
//! Owns that one choice.

use super::SourceSettings;
use super::apple_calls_ffi::AppleFunctions;
use super::apple_loaded_ffi as loaded;
use super::apple_system as system;

/// The functions.
///
/// # Errors
/// They are not there, in words for the administrator.
pub fn load_functions(settings: &SourceSettings) -> Result<AppleFunctions, String> {
    match &settings.apple_library {
        Some(path) => loaded::load_functions(path),
        None => system::load_functions(),
    }
}
