//! Sockets that launchd creates and listens on (`launch_activate_socket` of <launch.h>).
//!
//! Owns the descriptors that the call returns, and frees their array. Only Unix stream sockets are accepted,
//! so that an error in the plist is reported at the start. The system call is an argument, so that this code
//! is tested on systems without launchd.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::sockopt::socket_type;
use rustix::net::{AddressFamily, SocketType, getsockname};

/// `launch_activate_socket`: stores the array of descriptors for a name in the plist and its length. Returns
/// 0 or an errno.
pub type LaunchActivateSocket = unsafe extern "C" fn(*const c_char, *mut *mut c_int, *mut usize) -> c_int;

/// The sockets with this name in the plist. Empty if launchd did not start this process or has no such name.
///
/// # Errors
/// The call fails, or a descriptor is not a Unix stream socket.
///
/// # Safety
/// `activate` must follow <launch.h>: if it returns 0, it has stored an array allocated by malloc, of as many
/// open descriptors as it states, which the caller owns.
pub unsafe fn listeners(activate: LaunchActivateSocket, name: &CStr) -> io::Result<Vec<UnixListener>> {
    let (mut array, mut count) = (std::ptr::null_mut(), 0_usize);
    // SAFETY: `name` ends with NUL, and both pointers are valid during the call.
    let status = unsafe { activate(name.as_ptr(), &raw mut array, &raw mut count) };
    match status {
        0 => {}
        // Not started by launchd, no such name, and already activated.
        libc::ESRCH | libc::ENOENT | libc::EALREADY => return Ok(Vec::new()),
        errno => return Err(io::Error::from_raw_os_error(errno)),
    }
    let mut sockets = Vec::new();
    if !array.is_null() {
        for at in 0..count {
            // SAFETY: `at` is less than the array's length, and each descriptor in it is owned here and taken
            // once.
            sockets.push(unsafe { OwnedFd::from_raw_fd(array.add(at).read()) });
        }
        // SAFETY: malloc allocated the array, and it is not used after this line.
        unsafe { libc::free(array.cast()) };
    }
    sockets.into_iter().map(into_listener).collect()
}

fn into_listener(socket: OwnedFd) -> io::Result<UnixListener> {
    let stream = socket_type(&socket)? == SocketType::STREAM;
    if !stream || getsockname(&socket)?.address_family() != AddressFamily::UNIX {
        let message = "the socket from launchd is not a Unix stream socket; check Sockets in the plist";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
    let listener = UnixListener::from(socket);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;
    use std::sync::Mutex;

    use super::*;

    type ActivationResult = Result<Vec<c_int>, c_int>;

    /// The results of the simulated call by name. Each is returned once, as by launchd.
    static LAUNCHD: Mutex<Vec<(&str, ActivationResult)>> = Mutex::new(Vec::new());

    unsafe extern "C" fn activate(name: *const c_char, into: *mut *mut c_int, count: *mut usize) -> c_int {
        // SAFETY: the caller passes a string that ends with NUL and two valid pointers, as for the real call.
        unsafe {
            let name = CStr::from_ptr(name).to_str().unwrap();
            let mut launchd = LAUNCHD.lock().unwrap();
            let Some(at) = launchd.iter().position(|(known, _)| *known == name) else { return libc::ENOENT };
            match launchd.remove(at).1 {
                Err(errno) => errno,
                Ok(sockets) => {
                    let array: *mut c_int = libc::malloc(size_of_val(sockets.as_slice())).cast();
                    array.copy_from_nonoverlapping(sockets.as_ptr(), sockets.len());
                    (*into, *count) = (array, sockets.len());
                    0
                }
            }
        }
    }

    fn listeners_from(name: &'static str, what: ActivationResult) -> io::Result<Vec<UnixListener>> {
        LAUNCHD.lock().unwrap().push((name, what));
        let name = std::ffi::CString::new(name).unwrap();
        // SAFETY: `activate` follows <launch.h>.
        unsafe { listeners(activate, &name) }
    }

    #[test]
    fn a_socket_from_launchd_accepts_connections() {
        let dir = tempfile::tempdir().unwrap();
        let path: PathBuf = dir.path().join("s");
        let bound = UnixListener::bind(&path).unwrap();
        let sockets = listeners_from("one", Ok(vec![bound.into_raw_fd()])).unwrap();
        assert_eq!(sockets.len(), 1);
        assert_eq!(sockets[0].accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let _client = UnixStream::connect(&path).unwrap();
        sockets[0].accept().unwrap();
        let asked_again = listeners_named(c"one").unwrap();
        assert!(asked_again.is_empty());
    }

    fn listeners_named(name: &CStr) -> io::Result<Vec<UnixListener>> {
        // SAFETY: `activate` follows <launch.h>.
        unsafe { listeners(activate, name) }
    }

    #[test]
    fn unknown_names_give_no_sockets_and_other_errnos_are_returned() {
        assert!(listeners_named(c"unknown").unwrap().is_empty());
        assert!(listeners_from("by hand", Err(libc::ESRCH)).unwrap().is_empty());
        assert!(listeners_from("again", Err(libc::EALREADY)).unwrap().is_empty());
        assert_eq!(listeners_from("full", Err(libc::EMFILE)).unwrap_err().raw_os_error(), Some(libc::EMFILE));
        assert!(listeners_from("empty", Ok(Vec::new())).unwrap().is_empty());
    }

    #[test]
    fn other_socket_types_are_rejected_and_closed() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = tcp.local_addr().unwrap();
        let refused = listeners_from("tcp", Ok(vec![tcp.into_raw_fd()])).unwrap_err();
        assert!(refused.to_string().contains("not a Unix stream socket"), "{refused}");
        assert!(std::net::TcpStream::connect(address).is_err(), "it was closed");
    }
}
