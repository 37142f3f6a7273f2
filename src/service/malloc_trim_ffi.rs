//! Free memory back to the system.
//!
//! glibc keeps what was freed below the top of a heap for later allocations (malloc_trim(3)); a daemon that once held many
//! spans would stay as large for ever.

/// Gives free pages of all heaps back to the system. Walks the heaps: for seldom use.
#[allow(unsafe_code)]
pub(crate) fn return_free_memory() {
    // SAFETY: glibc takes its own locks and touches free chunks only; no pointer is passed.
    unsafe { libc::malloc_trim(0) };
}
