//! The system call `perf_event_open(2)`, which no safe wrapper covers.
//!
//! Fills `perf_event_attr` for a counting event of a whole CPU. Reading and closing are file operations on the returned
//! descriptor.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use perf_event_open_sys::bindings::{PERF_FLAG_FD_CLOEXEC, PERF_FORMAT_GROUP, perf_event_attr};
use perf_event_open_sys::perf_event_open;

/// Opens a counter of PMU `kind` for all tasks on `cpu` and starts it. With `group`, the counter joins that leader's group,
/// and one read of the leader returns all counts.
///
/// No exclude flag is set: the `power` and `msr` PMUs refuse them (PERF_PMU_CAP_NO_EXCLUDE).
///
/// # Errors
/// The kernel's error: EACCES or EPERM without permission, EINVAL or ENOENT if the counter does not exist.
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
    // SAFETY: `attr` is a whole, zero-filled perf_event_attr with its own size in it and outlives the call; a counting
    // event (no sampling, no buffer) makes the kernel write nothing but `attr.size` on error.
    let fd = unsafe { perf_event_open(&raw mut attr, -1, cpu, group, PERF_FLAG_FD_CLOEXEC.into()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel returned this new descriptor, and no other object owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
