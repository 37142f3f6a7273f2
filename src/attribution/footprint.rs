//! Estimates of the memory that a span takes, for quotas.
//!
//! Owns what an allocation, an attribute, a phase and a history of weights are taken to cost. Sizes of types are the
//! compiler's; the rest is that of glibc's allocator on 64 bits and of the standard library's B-tree, rounded up. Small
//! tables that double as they grow are counted as twice as large; of large ones the unused half is never touched.
//! Arithmetic only: nothing is measured, nothing is walked but attributes.

use std::collections::BTreeMap;

use super::account::{Account, Phase, Share};
use super::edge_queue::{Edge, EdgeInstant};
use super::span::{PhaseBoundary, Span, SpanDomainHistory, SpanDomainState, SpanHistory};
use super::weight_history::{MAX_WEIGHT_INTERVALS, ProcessShare, WeightInterval};

/// A chunk of malloc has a header of 8 bytes and is a multiple of 16; none is smaller than 32.
const CHUNK_HEADER_BYTES: usize = 8;
const MIN_CHUNK_BYTES: usize = 32;

/// A leaf of a B-tree map of texts: 11 keys and values, a parent and counts. Leaves split in half, so that as few as
/// five pairs fill one; an inner node comes with about every sixth.
const LEAF_BYTES: usize = allocation_bytes(11 * 2 * size_of::<String>() + 16) + 128;
const MIN_PAIRS_PER_LEAF: usize = 5;

/// What an allocation of this size takes; nothing where nothing is allocated.
pub const fn allocation_bytes(bytes: usize) -> usize {
    if bytes == 0 {
        return 0;
    }
    let chunk = (bytes + CHUNK_HEADER_BYTES).next_multiple_of(16);
    if chunk < MIN_CHUNK_BYTES { MIN_CHUNK_BYTES } else { chunk }
}

/// What attributes take.
pub fn attributes_bytes(attributes: &BTreeMap<String, String>) -> usize {
    let texts: usize = attributes
        .iter()
        .map(|(key, value)| allocation_bytes(key.len()) + allocation_bytes(value.len()))
        .sum();
    attributes.len().div_ceil(MIN_PAIRS_PER_LEAF) * LEAF_BYTES + texts
}

/// What an account takes that is remembered.
pub fn account_bytes(account: &Account) -> usize {
    let text = |text: &String| allocation_bytes(text.len());
    let domains = allocation_bytes(account.domains.capacity() * size_of::<Share>())
        + account.domains.iter().map(|share| text(&share.domain)).sum::<usize>();
    let phases = allocation_bytes(account.phases.capacity() * size_of::<Phase>())
        + account.phases.iter().map(|phase| text(&phase.name)).sum::<usize>();
    let texts = text(&account.span)
        + text(&account.name)
        + account.cgroup.as_ref().map_or(0, text)
        + account.process_reason.as_ref().map_or(0, text);
    allocation_bytes(size_of::<Account>() + 16)
        + domains
        + phases
        + texts
        + attributes_bytes(&account.attributes)
}

/// What spans take in an attributor over so many domains.
#[derive(Debug, Clone, Copy)]
pub struct Footprint {
    domains: usize,
}

/// An edge that waits for its counters, alone at its instant.
const EDGE_BYTES: usize = size_of::<Edge>() + size_of::<EdgeInstant>();

impl Footprint {
    /// Of an attributor over so many domains.
    pub const fn new(domains: usize) -> Self {
        Self { domains }
    }

    /// A span with these texts, its two edges included, or its account where that is larger.
    pub fn span_bytes(&self, span: &str, name: &str) -> usize {
        let slot = size_of::<Span>()
            + self.domains * size_of::<SpanDomainState>()
            + size_of::<u64>()
            + size_of::<u32>();
        let held = slot + 2 * EDGE_BYTES;
        let settled = size_of::<Account>() + self.domains * (size_of::<Share>() + MIN_CHUNK_BYTES);
        held.max(settled) + allocation_bytes(span.len()) + allocation_bytes(name.len())
    }

    /// What the first phase or change of weight adds.
    pub fn history_bytes(&self) -> usize {
        allocation_bytes(size_of::<SpanHistory>())
            + allocation_bytes(self.domains * size_of::<SpanDomainHistory>())
    }

    /// What each phase adds.
    pub fn phase_bytes(&self, name: &str) -> usize {
        let held =
            2 * size_of::<(u64, String)>() + self.domains * 2 * size_of::<PhaseBoundary>() + EDGE_BYTES;
        held.max(size_of::<Phase>()) + allocation_bytes(name.len())
    }

    /// What the first change of weight adds; the others wait for their counters, which has a limit of its own.
    pub fn weight_history_bytes(&self) -> usize {
        allocation_bytes(MAX_WEIGHT_INTERVALS * size_of::<WeightInterval>())
            + allocation_bytes(self.domains * size_of::<Option<ProcessShare>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_small_attributes_cost_far_more_than_their_text() {
        let small = (0..64).map(|at| (format!("{at:02}"), "v".to_owned())).collect();
        let (bytes, text) = (attributes_bytes(&small), 64 * 3);
        assert!(bytes > 64 * (2 * MIN_CHUNK_BYTES + 2 * size_of::<String>()), "{bytes}");
        assert!(bytes > 50 * text, "{bytes}");
        assert_eq!(attributes_bytes(&BTreeMap::new()), 0);
    }

    #[test]
    fn an_allocation_is_a_chunk_of_malloc() {
        assert_eq!([0, 1, 24, 25, 40, 41, 1000].map(allocation_bytes), [0, 32, 32, 48, 48, 64, 1008]);
    }

    #[test]
    fn the_footprint_grows_with_the_domains() {
        let (few, many) = (Footprint::new(3), Footprint::new(64));
        assert!(many.span_bytes("s", "") - few.span_bytes("s", "") >= 61 * size_of::<SpanDomainState>());
        assert!(many.phase_bytes("p") - few.phase_bytes("p") >= 61 * size_of::<PhaseBoundary>());
        assert!(many.history_bytes() - few.history_bytes() >= 61 * size_of::<SpanDomainHistory>());
        assert!(many.weight_history_bytes() > few.weight_history_bytes());
    }
}
