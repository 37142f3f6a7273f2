//! The load of `wattspan doctor`: a loop that keeps one CPU busy.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};

/// Keeps the CPU of this thread busy while the flag is set.
pub fn keep_busy(busy: &AtomicBool) {
    let mut x = 1u64;
    while busy.load(Ordering::Relaxed) {
        for _ in 0..10_000 {
            x = black_box(x.wrapping_mul(6_364_136_223_846_793_005).rotate_left(17));
        }
    }
}
