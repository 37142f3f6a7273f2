//! Estimates of the memory that a span takes, for quotas.
//!
//! The sizes of types are the compiler's. The other sizes are those of glibc's allocator on 64 bits and of the standard
//! library's B-tree, rounded up. A small table that doubles as it grows counts twice; the unused half of a large one is
//! never touched. Only arithmetic: nothing is measured.

use std::collections::BTreeMap;

use wattspan_client::account::{Account, Phase, Share};

use super::edge_queue::{Edge, EdgeInstant};
use super::process_history::{MAX_WEIGHT_INTERVALS, ProcessShare, WeightHistory, WeightInterval};
use super::request::SpanKey;
use super::span::{PhaseEnd, Span, SpanDomainHistory, SpanDomainState, SpanHistory};

/// A malloc chunk has a header of 8 bytes; its size is a multiple of 16 and at least 32.
const CHUNK_HEADER_BYTES: usize = 8;
const MIN_CHUNK_BYTES: usize = 32;

/// A leaf of a B-tree map of strings: 11 keys and values, a parent and counts. Leaves split in half, so a leaf has at
/// least five pairs; there is an inner node for about every sixth leaf.
const LEAF_BYTES: usize = allocation_bytes(11 * 2 * size_of::<String>() + 16) + 128;
const MIN_PAIRS_PER_LEAF: usize = 5;

/// The memory of an allocation of this size; 0 for size 0.
pub const fn allocation_bytes(bytes: usize) -> usize {
    if bytes == 0 {
        return 0;
    }
    let chunk = (bytes + CHUNK_HEADER_BYTES).next_multiple_of(16);
    if chunk < MIN_CHUNK_BYTES { MIN_CHUNK_BYTES } else { chunk }
}

/// The memory of a map of attributes.
pub fn attributes_bytes(attributes: &BTreeMap<String, String>) -> usize {
    let texts: usize = attributes
        .iter()
        .map(|(key, value)| allocation_bytes(key.len()) + allocation_bytes(value.len()))
        .sum();
    let map = if attributes.is_empty() { 0 } else { allocation_bytes(size_of::<BTreeMap<String, String>>()) };
    map + attributes.len().div_ceil(MIN_PAIRS_PER_LEAF) * LEAF_BYTES + texts
}

/// The memory of an account that is kept.
pub fn account_bytes(account: &Account) -> usize {
    let text = |text: &String| allocation_bytes(text.len());
    // The accounts share the names of the domains.
    let domains = allocation_bytes(account.domains.capacity() * size_of::<Share>());
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

/// The memory of a span in an attributor over a number of domains.
#[derive(Debug, Clone, Copy)]
pub struct Footprint {
    domains: usize,
}

/// A pending edge, alone at its instant.
const EDGE_BYTES: usize = size_of::<Edge>() + size_of::<EdgeInstant>();

impl Footprint {
    /// For an attributor over this number of domains.
    pub const fn new(domains: usize) -> Self {
        Self { domains }
    }

    /// A span with this ID and name and its two edges, or its account if that is larger.
    pub fn span_bytes(&self, span: &str, name: &str) -> usize {
        let slot = size_of::<Span>()
            + self.domains * size_of::<SpanDomainState>()
            + size_of::<u64>()
            + size_of::<u32>();
        let held = slot + 2 * EDGE_BYTES;
        let settled = size_of::<Account>() + self.domains * size_of::<Share>() + MIN_CHUNK_BYTES;
        held.max(settled) + allocation_bytes(span.len()) + allocation_bytes(name.len())
    }

    /// The memory that the first phase or change of weight adds.
    pub fn history_bytes(&self) -> usize {
        allocation_bytes(size_of::<SpanHistory>())
            + allocation_bytes(self.domains * size_of::<SpanDomainHistory>())
    }

    /// The memory that each phase adds.
    pub fn phase_bytes(&self, name: &str) -> usize {
        let held = 2 * size_of::<(u64, String)>() + self.domains * 2 * size_of::<PhaseEnd>() + EDGE_BYTES;
        held.max(size_of::<Phase>()) + allocation_bytes(name.len())
    }

    /// The memory that the first change of weight adds. The others add pending edges, which have their own limit.
    pub fn weight_history_bytes(&self) -> usize {
        // A hash table doubles when 7 of 8 places are taken.
        3 * size_of::<(SpanKey, WeightHistory)>()
            + allocation_bytes(MAX_WEIGHT_INTERVALS * size_of::<WeightInterval>())
            + allocation_bytes(self.domains * size_of::<ProcessShare>())
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
    fn an_allocation_takes_a_whole_malloc_chunk() {
        assert_eq!([0, 1, 24, 25, 40, 41, 1000].map(allocation_bytes), [0, 32, 32, 48, 48, 64, 1008]);
    }

    #[test]
    fn the_footprint_grows_with_the_domains() {
        let (few, many) = (Footprint::new(3), Footprint::new(64));
        assert!(many.span_bytes("s", "") - few.span_bytes("s", "") >= 61 * size_of::<SpanDomainState>());
        assert!(many.phase_bytes("p") - few.phase_bytes("p") >= 61 * size_of::<PhaseEnd>());
        assert!(many.history_bytes() - few.history_bytes() >= 61 * size_of::<SpanDomainHistory>());
        assert!(many.weight_history_bytes() > few.weight_history_bytes());
    }
}
