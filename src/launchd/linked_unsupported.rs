//! Sockets from launchd on systems without launchd: none.

use std::io;
use std::os::unix::net::UnixListener;

/// Returns an empty list.
///
/// # Errors
/// None on this system.
pub fn listeners() -> io::Result<Vec<UnixListener>> {
    Ok(Vec::new())
}
