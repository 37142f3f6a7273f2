//! Apple's functions from a library that replaces the system's, so that their callers run on any system.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::dynamic_library_ffi::DynamicLibrary;
use super::functions_ffi::{AppleFunctions, CoreFoundationFunctions, IoKitFunctions, IoReportFunctions};

/// Fills the table from the library at `path`.
///
/// # Errors
/// The loader's text: the library is missing, or lacks a symbol.
pub fn load_functions(path: &Path) -> Result<AppleFunctions, String> {
    let path =
        CString::new(path.as_os_str().as_bytes()).map_err(|_| "the path contains a NUL byte".to_owned())?;
    let library = DynamicLibrary::load(&path)?;
    // SAFETY: the administrator named the library as one that has Apple's functions with their types, and a `DynamicLibrary` stays
    // loaded.
    let (foundation, kit, report) = unsafe {
        (
            CoreFoundationFunctions::find(|name| library.symbol_address(name))?,
            IoKitFunctions::find(|name| library.symbol_address(name))?,
            IoReportFunctions::find(|name| library.symbol_address(name)),
        )
    };
    let report = report.map_err(|_| "the replacement library lacks functions of IOReport");
    Ok(AppleFunctions { foundation, kit, task: 1, report })
}
