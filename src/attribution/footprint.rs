//! Estimates of the memory that a span takes, for quotas.
//!
//! Owns what an allocation, an attribute, a phase and a history of weights are taken to cost. Sizes of types are the
//! compiler's; the rest is that of glibc's allocator on 64 bits and of the standard library's B-tree, rounded up. Small
//! tables that double as they grow are counted as twice as large; of large ones the unused half is never touched. Arithmetic only: nothing is measured, nothing is walked but
//! attributes.

use std::collections::BTreeMap;

use super::account::{Account, Phase, Share};
use super::mark::Mark;
use super::portion::Portion;
use super::queue::{Event, Instant};
use super::span::{Cut, Lane, MOST_PIECES, Span, Story, WeightPiece};

/// A chunk of malloc has a header of 8 bytes and is a multiple of 16; none is smaller than 32.
const HEADER_BYTES: usize = 8;
const LEAST_CHUNK_BYTES: usize = 32;

/// A leaf of a B-tree map of texts: 11 keys and values, a parent and counts. Leaves split in half, so that as few as five
/// pairs fill one; an inner node comes with about every sixth.
const LEAF_BYTES: usize = allocation(11 * 2 * size_of::<String>() + 16) + 128;
const LEAST_PAIRS_OF_LEAF: usize = 5;

/// What an allocation of this size takes; nothing where nothing is allocated.
pub const fn allocation(bytes: usize) -> usize {
    if bytes == 0 {
        return 0;
    }
    let chunk = (bytes + HEADER_BYTES).next_multiple_of(16);
    if chunk < LEAST_CHUNK_BYTES { LEAST_CHUNK_BYTES } else { chunk }
}

/// What attributes take.
pub fn attributes(attributes: &BTreeMap<String, String>) -> usize {
    let texts: usize =
        attributes.iter().map(|(key, value)| allocation(key.len()) + allocation(value.len())).sum();
    attributes.len().div_ceil(LEAST_PAIRS_OF_LEAF) * LEAF_BYTES + texts
}

/// What an account takes that is remembered.
pub fn account(account: &Account) -> usize {
    let text = |text: &String| allocation(text.len());
    let domains = allocation(account.domains.capacity() * size_of::<Share>())
        + account.domains.iter().map(|share| text(&share.domain)).sum::<usize>();
    let phases = allocation(account.phases.capacity() * size_of::<Phase>())
        + account.phases.iter().map(|phase| text(&phase.name)).sum::<usize>();
    let texts = text(&account.span)
        + text(&account.name)
        + account.cgroup.as_ref().map_or(0, text)
        + account.process_reason.as_ref().map_or(0, text);
    allocation(size_of::<Account>() + 16) + domains + phases + texts + attributes(&account.attributes)
}

/// What spans take in a ledger over so many domains.
#[derive(Debug, Clone, Copy)]
pub struct Footprint {
    domains: usize,
}

/// An edge that waits for its counters, alone at its instant.
const EDGE_BYTES: usize = size_of::<Event>() + size_of::<Instant>();

impl Footprint {
    /// Of a ledger over so many domains.
    pub const fn new(domains: usize) -> Self {
        Self { domains }
    }

    /// A span with these texts, its two edges included, or its account where that is larger.
    pub fn span(&self, span: &str, name: &str) -> usize {
        let slot = size_of::<Span>() + self.domains * size_of::<Mark>() + size_of::<u64>() + size_of::<u32>();
        let held = slot + 2 * EDGE_BYTES;
        let settled = size_of::<Account>() + self.domains * (size_of::<Share>() + LEAST_CHUNK_BYTES);
        held.max(settled) + allocation(span.len()) + allocation(name.len())
    }

    /// What the first phase or change of weight adds.
    pub fn story(&self) -> usize {
        allocation(size_of::<Story>()) + allocation(self.domains * size_of::<Lane>())
    }

    /// What each phase adds.
    pub fn phase(&self, name: &str) -> usize {
        let held = 2 * size_of::<(u64, String)>() + self.domains * 2 * size_of::<Cut>() + EDGE_BYTES;
        held.max(size_of::<Phase>()) + allocation(name.len())
    }

    /// What the first change of weight adds; the others wait for their counters, which has a limit of its own.
    pub fn weights(&self) -> usize {
        allocation(MOST_PIECES * size_of::<WeightPiece>())
            + allocation(self.domains * size_of::<Option<Portion>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_small_attributes_cost_far_more_than_their_text() {
        let small = (0..64).map(|at| (format!("{at:02}"), "v".to_owned())).collect();
        let (bytes, text) = (attributes(&small), 64 * 3);
        assert!(bytes > 64 * (2 * LEAST_CHUNK_BYTES + 2 * size_of::<String>()), "{bytes}");
        assert!(bytes > 50 * text, "{bytes}");
        assert_eq!(attributes(&BTreeMap::new()), 0);
    }

    #[test]
    fn an_allocation_is_a_chunk_of_malloc() {
        assert_eq!([0, 1, 24, 25, 40, 41, 1000].map(allocation), [0, 32, 32, 48, 48, 64, 1008]);
    }

    #[test]
    fn what_more_domains_gather_is_counted() {
        let (few, many) = (Footprint::new(3), Footprint::new(64));
        assert!(many.span("s", "") - few.span("s", "") >= 61 * size_of::<Mark>());
        assert!(many.phase("p") - few.phase("p") >= 61 * size_of::<Cut>());
        assert!(many.story() - few.story() >= 61 * size_of::<Lane>());
        assert!(many.weights() > few.weights());
    }
}
