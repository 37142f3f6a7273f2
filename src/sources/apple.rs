//! Where Apple's functions come from: the system's own, or a library that stands in for them.
//!
//! Owns that one choice.

use super::Settings;
use super::apple_calls_ffi::Calls;
use super::apple_loaded_ffi as loaded;
use super::apple_system as system;

/// The functions.
///
/// # Errors
/// They are not there, in words for the administrator.
pub fn calls(settings: &Settings) -> Result<Calls, String> {
    match &settings.apple_library {
        Some(path) => loaded::calls(path),
        None => system::calls(),
    }
}
