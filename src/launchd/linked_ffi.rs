//! launchd's own call (macOS, libSystem).
//!
//! Owns its declaration and the name of our socket in the plist.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int};
use std::io;
use std::os::unix::net::UnixListener;

use super::activation_ffi;

unsafe extern "C" {
    fn launch_activate_socket(name: *const c_char, sockets: *mut *mut c_int, count: *mut usize) -> c_int;
}

/// What launchd/org.wattspan.wattspand.plist calls it.
const NAME: &CStr = c"Listener";

/// The sockets that launchd made for us; none where it did not start us.
///
/// # Errors
/// launchd's own, or one of them is no Unix stream socket.
pub fn listeners() -> io::Result<Vec<UnixListener>> {
    // SAFETY: it is the very call of launch.h.
    unsafe { activation_ffi::listeners(launch_activate_socket, NAME) }
}
