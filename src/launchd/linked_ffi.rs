//! The declaration of `launch_activate_socket` (macOS, libSystem), and the name of the daemon's socket in the
//! plist.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int};
use std::io;
use std::os::unix::net::UnixListener;

use super::activation_ffi;

unsafe extern "C" {
    fn launch_activate_socket(name: *const c_char, sockets: *mut *mut c_int, count: *mut usize) -> c_int;
}

/// The key below Sockets in launchd/org.wattspan.wattspand.plist.
const NAME: &CStr = c"Listener";

/// The sockets that launchd created for the daemon. Empty if launchd did not start it.
///
/// # Errors
/// The call fails, or a descriptor is not a Unix stream socket.
pub fn listeners() -> io::Result<Vec<UnixListener>> {
    // SAFETY: `launch_activate_socket` is the function of <launch.h>.
    unsafe { activation_ffi::listeners(launch_activate_socket, NAME) }
}
