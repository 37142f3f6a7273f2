//! A shared library that is loaded at run time and stays loaded.
//!
//! Owns the calls of dlopen(3) and dlsym(3). Never unloads: addresses of the library stay in use.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_void};
use std::ptr::NonNull;

pub struct DynamicLibrary(NonNull<c_void>);

impl DynamicLibrary {
    /// Loads the library at `path`, or returns the loaded one.
    ///
    /// # Errors
    /// The loader's text.
    pub fn load(path: &CStr) -> Result<Self, String> {
        // SAFETY: the path ends with NUL. Loading runs the library's initialisers; the path is the system's own or
        // one that the administrator configured.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        NonNull::new(handle).map(Self).ok_or_else(loader_error)
    }

    /// The address of the symbol `name`.
    ///
    /// # Errors
    /// The library has no such symbol.
    pub fn symbol_address(&self, name: &CStr) -> Result<NonNull<c_void>, String> {
        // SAFETY: the handle came from dlopen and is never closed; the name ends with NUL.
        let found = unsafe { libc::dlsym(self.0.as_ptr(), name.as_ptr()) };
        NonNull::new(found).ok_or_else(loader_error)
    }
}

/// The loader's last error text.
fn loader_error() -> String {
    // SAFETY: dlerror returns null, or a string that ends with NUL and is valid until this thread's next call of dl*.
    let message = unsafe {
        let message = libc::dlerror();
        (!message.is_null()).then(|| CStr::from_ptr(message).to_string_lossy().into_owned())
    };
    message.unwrap_or_else(|| "the loader gave no reason".into())
}
