//! Returns free memory to the system.
//!
//! glibc keeps memory that was freed below the top of a heap (malloc_trim(3)), so a daemon that once had many spans would
//! keep its size.

/// Returns free pages of all heaps to the system. Walks the heaps, so it is slow.
#[allow(unsafe_code)]
pub(crate) fn return_free_memory() {
    // SAFETY: glibc takes its own locks and touches free chunks only; no pointer is passed.
    unsafe { libc::malloc_trim(0) };
}
