//! Deduplication: finds domains that show the same energy, and chooses the domains to read and to count.
//!
//! `preference` chooses one mechanism for each domain, `cross_check` compares mechanisms that show the same domain,
//! `same_register` finds two names of one register, and `domain_tree` counts only the outermost of nested domains.

/// Comparison of mechanisms that show the same domain.
pub mod cross_check;

/// A source with a subset of its domains.
pub(super) mod domain_selection;

/// The choice of the domains in the host's total.
pub mod domain_tree;

/// Pairs of domains that may be two names of one counter.
pub mod duplicate_pair;

/// The choice of one source for each domain.
pub mod preference;

/// Detection of one register under two names.
mod same_register;
