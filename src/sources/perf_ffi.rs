//! The one system call that no safe wrapper covers: `perf_event_open(2)`.
//!
//! Owns the filling of `perf_event_attr` for a counting event of a whole CPU. Everything else about perf (reading,
//! closing) is ordinary file work on the descriptor that comes back.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use perf_event_open_sys::bindings::{PERF_FLAG_FD_CLOEXEC, PERF_FORMAT_GROUP, perf_event_attr};
use perf_event_open_sys::perf_event_open;

/// Opens a counter of PMU `kind` for everything that runs on `cpu`, counting from now on; as a member of `group`'s
/// group where one is given, so that one read of the leader gives all.
///
/// No exclude flag is set: the `power` and `msr` PMUs refuse them (PERF_PMU_CAP_NO_EXCLUDE).
///
/// # Errors
/// What the kernel says: EACCES or EPERM without permission, EINVAL or ENOENT where there is no such counter.
pub fn open_counter(
    kind: u32,
    config: u64,
    cpu: usize,
    group: Option<BorrowedFd<'_>>,
) -> io::Result<OwnedFd> {
    let mut attr = perf_event_attr {
        type_: kind,
        size: u32::try_from(size_of::<perf_event_attr>()).map_err(io::Error::other)?,
        config,
        read_format: u64::from(PERF_FORMAT_GROUP),
        ..perf_event_attr::default()
    };
    let cpu = i32::try_from(cpu).map_err(io::Error::other)?;
    let group = group.map_or(-1, |leader| leader.as_raw_fd());
    // SAFETY: `attr` is a whole, zero-filled perf_event_attr with its own size in it and lives over the call; a counting
    // event (no sampling, no buffer) makes the kernel write nothing but `attr.size` on error.
    let fd = unsafe { perf_event_open(&raw mut attr, -1, cpu, group, PERF_FLAG_FD_CLOEXEC.into()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
