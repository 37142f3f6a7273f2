//! Each joule once: which domains show the same energy, and which of them are read and counted.
//!
//! A domain that several mechanisms show is read through one of them (`preference`), mechanisms that show the same domain
//! are compared (`cross_check`), two names of one register are found (`same_register`), and of domains within each other
//! only the outermost are counted (`domain_tree`).

/// Whether mechanisms that show the same domain agree.
pub mod cross_check;

/// A source with some of its domains left out.
mod domain_selection;

/// Which domains make up the host's total.
pub mod domain_tree;

/// Pairs of domains that may be two names of one counter.
pub mod duplicate_pair;

/// Of domains that several sources show, the one that is read.
pub mod preference;

/// Whether two counters are one register under two names.
mod same_register;
