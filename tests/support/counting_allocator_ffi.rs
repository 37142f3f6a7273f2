//! A counting allocator, for tests that check that code allocates nothing.
//!
//! Counts allocation requests per thread and passes every request on to the system's allocator.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator with a per-thread request count.
pub struct Counting;

thread_local! {
    // A constant without a destructor: reading it never allocates, and it stays valid until the thread ends.
    static REQUESTS: Cell<u64> = const { Cell::new(0) };
}

/// Allocation requests of the calling thread so far.
pub fn requests() -> u64 {
    REQUESTS.get()
}

// SAFETY: every request is passed unchanged to `System`, which keeps the contract; counting touches no allocated
// memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        REQUESTS.set(REQUESTS.get() + 1);
        // SAFETY: the caller keeps the contract of `alloc`, which is the same for `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`, and `memory` came from `System`.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        REQUESTS.set(REQUESTS.get() + 1);
        // SAFETY: the caller keeps the contract of `realloc`, and `memory` came from `System`.
        unsafe { System.realloc(memory, layout, size) }
    }
}
