//! Fixed history of samples: one writer, many readers, the oldest overwritten.
//!
//! Owns the memory between a sampler and its readers. `RingWriter::push` is wait-free and allocates nothing,
//! whatever the readers do; a reader copies a whole sample or learns that it is gone, never half of each. There is no
//! lock and no `unsafe`: every word is an atomic, and each slot carries the sequence number of what it holds (a
//! seqlock). Memory stays untouched until written. Never does arithmetic on energy, never waits.
//!
//! The orderings are checked by a model (`model.rs`), which explores every interleaving of one writer that
//! laps a reader; taking either fence out must make it fail:
//!
//! ```text
//! cargo test --release --manifest-path tests/ring_model/Cargo.toml                                        # passes
//! RING_HOLE=ring_without_writer_fence cargo test --release --manifest-path tests/ring_model/Cargo.toml    # must fail
//! RING_HOLE=ring_without_reader_fence cargo test --release --manifest-path tests/ring_model/Cargo.toml    # must fail
//! ```

use crate::domain::EnergyReading;
use atomic::{Arc, AtomicU64, Ordering, reader_fence, writer_fence, zeroed};

/// The machine's atomics, or the model checker's; and under the model only, no fences, to see it fail.
mod atomic {
    #[cfg(loom)]
    use loom::sync;
    #[cfg(not(loom))]
    use std::sync;

    pub(super) use sync::Arc;
    pub(super) use sync::atomic::{AtomicU64, Ordering};

    #[cfg(loom)]
    pub(super) use super::modelled::zeroed;
    #[cfg(not(loom))]
    pub(super) use bytemuck::zeroed_slice_box as zeroed;

    #[cfg(all(loom, ring_without_reader_fence))]
    pub(super) use super::unfenced::fence as reader_fence;
    #[cfg(all(loom, ring_without_writer_fence))]
    pub(super) use super::unfenced::fence as writer_fence;
    #[cfg(not(all(loom, ring_without_reader_fence)))]
    pub(super) use sync::atomic::fence as reader_fence;
    #[cfg(not(all(loom, ring_without_writer_fence)))]
    pub(super) use sync::atomic::fence as writer_fence;
}

/// The model checker's atomics are made one by one.
#[cfg(loom)]
mod modelled {
    use super::AtomicU64;

    pub(super) fn zeroed(length: usize) -> Box<[AtomicU64]> {
        (0..length).map(|_| AtomicU64::new(0)).collect()
    }
}

/// A fence that does not hold: the hole that the model has to find.
#[cfg(all(loom, any(ring_without_reader_fence, ring_without_writer_fence)))]
mod unfenced {
    pub(super) fn fence(_: super::Ordering) {}
}

/// What one read of a source gave: all its domains at one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The clock just before the read.
    pub before_ns: u64,
    /// The clock just after it.
    pub after_ns: u64,
    /// One reading for each domain of the source.
    pub readings: Vec<EnergyReading>,
}

impl Sample {
    /// A sample at time 0 in which none of `domains` domains answered: something to read into.
    pub fn empty(domains: usize) -> Self {
        Self { before_ns: 0, after_ns: 0, readings: vec![EnergyReading::default(); domains] }
    }
}

/// The only writer of a ring.
pub struct RingWriter {
    buffer: Arc<RingBuffer>,
    /// Index of the next sample; `buffer.write_count` follows it.
    next: u64,
}

/// One of many readers.
#[derive(Clone)]
pub struct RingReader {
    buffer: Arc<RingBuffer>,
}

struct RingBuffer {
    /// `capacity` slots of `stride` words: sequence, before, after, then [`READING_WORDS`] for each domain.
    words: Box<[AtomicU64]>,
    write_count: WriteCount,
    /// Capacity less one; the capacity is a power of two.
    mask: u64,
    stride: usize,
    domains: usize,
}

/// How many samples were ever written; on a cache line of its own, since every push writes and every poll reads it.
#[repr(align(64))]
struct WriteCount(AtomicU64);

/// Words before the first reading: sequence, before_ns, after_ns.
const HEADER_WORDS: usize = 3;
/// Words of one reading: energy, uncertainty, stamp, epoch with valid as its lowest bit, shape.
const READING_WORDS: usize = 5;

/// A ring of `capacity` samples (rounded up to a power of two) of `domains` readings each.
pub fn ring(capacity: usize, domains: usize) -> (RingWriter, RingReader) {
    let capacity = capacity.max(1).next_power_of_two();
    let stride = HEADER_WORDS + READING_WORDS * domains;
    // Zeroes from the allocator, which the kernel backs page by page as they are written: a long history costs nothing
    // until it is filled. `benches/ring.rs` watches that it stays true.
    let words = zeroed(capacity * stride);
    let write_count = WriteCount(AtomicU64::new(0));
    let buffer = Arc::new(RingBuffer { words, write_count, mask: capacity as u64 - 1, stride, domains });
    (RingWriter { buffer: Arc::clone(&buffer), next: 0 }, RingReader { buffer })
}

impl RingBuffer {
    fn slot(&self, index: u64) -> &[AtomicU64] {
        let at = (index & self.mask) as usize * self.stride;
        &self.words[at..at + self.stride]
    }
}

/// What a slot's sequence is while sample `index` is being written into it.
const fn in_progress(index: u64) -> u64 {
    2 * index + 1
}

/// What a slot's sequence is once it holds sample `index` whole; 0 is a slot never written.
const fn complete(index: u64) -> u64 {
    2 * index + 2
}

impl RingWriter {
    /// Appends a sample, overwriting the oldest. Wait-free, allocates nothing. A reading that is missing at the end
    /// counts as one that did not answer, one too many is left out.
    pub fn push(&mut self, sample: &Sample) {
        debug_assert_eq!(
            sample.readings.len(),
            self.buffer.domains,
            "a sample holds one reading for each domain"
        );
        let slot = self.buffer.slot(self.next);
        slot[0].store(in_progress(self.next), Ordering::Relaxed);
        // Release: a reader that sees any word stored below also sees the odd sequence above (or a later one) after
        // its own Acquire fence, and drops what it copied. Pairs with `reader_fence` in `RingReader::read_consistent`.
        writer_fence(Ordering::Release);
        slot[1].store(sample.before_ns, Ordering::Relaxed);
        slot[2].store(sample.after_ns, Ordering::Relaxed);
        let readings = sample.readings.iter().copied().chain(std::iter::repeat(EnergyReading::default()));
        for (words, reading) in slot[HEADER_WORDS..].chunks_exact(READING_WORDS).zip(readings) {
            words[0].store(reading.energy_uj, Ordering::Relaxed);
            words[1].store(reading.uncertainty_uj, Ordering::Relaxed);
            words[2].store(reading.stamp_ns, Ordering::Relaxed);
            words[3].store(u64::from(reading.epoch) << 1 | u64::from(reading.valid), Ordering::Relaxed);
            words[4].store(reading.shape_uj, Ordering::Relaxed);
        }
        // Release: a reader that loads this even sequence with Acquire sees every word stored above.
        slot[0].store(complete(self.next), Ordering::Release);
        self.next += 1;
        // Release: a reader that loads this count with Acquire finds its slot complete.
        self.buffer.write_count.0.store(self.next, Ordering::Release);
    }
}

impl RingReader {
    /// How many samples were ever written; the newest has index `written_count() - 1`.
    pub fn written_count(&self) -> u64 {
        self.buffer.write_count.0.load(Ordering::Acquire)
    }

    /// The oldest index that may still be there.
    pub fn oldest_index(&self) -> u64 {
        self.written_count().saturating_sub(self.buffer.mask + 1)
    }

    /// How many samples the ring holds once it is full; a power of two.
    pub fn capacity(&self) -> u64 {
        self.buffer.mask + 1
    }

    /// How many readings a sample has.
    pub fn domains(&self) -> usize {
        self.buffer.domains
    }

    /// Copies sample `index` into `into` whole, or returns false where it is overwritten or not yet written; then
    /// `into` holds nothing of meaning. Allocates only where `into` has fewer readings than the ring.
    pub fn read(&self, index: u64, into: &mut Sample) -> bool {
        into.readings.resize(self.buffer.domains, EnergyReading::default());
        let copy = |slot: &[AtomicU64]| {
            into.before_ns = slot[1].load(Ordering::Relaxed);
            into.after_ns = slot[2].load(Ordering::Relaxed);
            for (words, reading) in slot[HEADER_WORDS..].chunks_exact(READING_WORDS).zip(&mut into.readings) {
                let epoch_and_valid = words[3].load(Ordering::Relaxed);
                *reading = EnergyReading {
                    valid: epoch_and_valid & 1 == 1,
                    energy_uj: words[0].load(Ordering::Relaxed),
                    uncertainty_uj: words[1].load(Ordering::Relaxed),
                    stamp_ns: words[2].load(Ordering::Relaxed),
                    epoch: (epoch_and_valid >> 1) as u32,
                    shape_uj: words[4].load(Ordering::Relaxed),
                };
            }
        };
        self.read_consistent(index, copy).is_some()
    }

    /// The index of the last sample whose `after_ns` is at or before `at_ns`; `None` where the history does not reach
    /// back that far. Samples are written in the order of time, so this halves its way there.
    pub fn find_at_or_before(&self, at_ns: u64) -> Option<u64> {
        let (mut low, mut high) = (self.oldest_index(), self.written_count());
        // Every sample below `low` is at or before `at_ns` or gone; every written one from `high` on is after it.
        while low < high {
            let middle = low + (high - low) / 2;
            match self.after_ns(middle) {
                Some(after_ns) if after_ns > at_ns => high = middle,
                // A sample overwritten on the way takes all older ones with it.
                Some(_) | None => low = middle + 1,
            }
        }
        let last = low.checked_sub(1)?;
        self.after_ns(last).filter(|&after_ns| after_ns <= at_ns).map(|_| last)
    }

    fn after_ns(&self, index: u64) -> Option<u64> {
        self.read_consistent(index, |slot| slot[2].load(Ordering::Relaxed))
    }

    /// What `copy` makes of the slot of sample `index`, if the slot held that sample from before to after the copy.
    fn read_consistent<T>(&self, index: u64, copy: impl FnOnce(&[AtomicU64]) -> T) -> Option<T> {
        let slot = self.buffer.slot(index);
        // Acquire: pairs with the Release store of the even sequence, so the words are at least this sample's.
        if slot[0].load(Ordering::Acquire) != complete(index) {
            return None;
        }
        let copied = copy(slot);
        // Acquire: had the copy seen a word of a later sample, the load below would see that sample's odd sequence or
        // a later one. Pairs with `writer_fence` in `RingWriter::push`.
        reader_fence(Ordering::Acquire);
        (slot[0].load(Ordering::Relaxed) == complete(index)).then_some(copied)
    }
}

#[cfg(all(test, loom))]
mod model;

#[cfg(all(test, not(loom)))]
mod tests;
