//! The choice of the library that has Apple's C functions: the system's own, or one that replaces it.

use std::path::Path;

use super::functions_ffi::AppleFunctions;
use super::{linked_functions, loaded_functions_ffi};

/// Loads the functions from `library`; `None`: from the system.
///
/// # Errors
/// The functions are unavailable; the text gives the reason.
pub fn load_functions(library: Option<&Path>) -> Result<AppleFunctions, String> {
    match library {
        Some(path) => loaded_functions_ffi::load_functions(path),
        None => linked_functions::load_functions(),
    }
}
