//! Whose use of the domains is told apart: subjects come, are looked at, and go.
//!
//! Owns nothing; the ledger's face towards whoever looks at CPU times. Invariant: a subject stays as long as a span
//! refers to it.

use super::Ledger;
use super::terms::{Look, Subject};

impl Ledger {
    /// Takes up a subject; gives the number that an [`Opening`](super::Opening) names it by, never 0.
    pub fn admit(&mut self, subject: Subject) -> u32 {
        self.portions.admit(subject, &self.tracks)
    }

    /// Drops a subject; false while a span refers to it.
    pub fn dismiss(&mut self, subject: u32) -> bool {
        self.portions.dismiss(subject)
    }

    /// Says why nothing is known of a subject's use; `None`: something is.
    pub fn excuse(&mut self, subject: u32, reason: Option<String>) {
        self.portions.excuse(subject, reason);
    }

    /// Whether a span of this subject is open or unsettled.
    pub fn refers_to(&self, subject: u32) -> bool {
        self.portions.held(subject)
    }

    /// Whether there is a subject of this number.
    pub fn has(&self, subject: u32) -> bool {
        self.portions.has(subject)
    }

    /// Whether there is any subject.
    pub fn has_subjects(&self) -> bool {
        !self.portions.is_empty()
    }

    /// Whether a span waits for its account, so that a look that covers its end is wanted soon.
    pub fn is_closing(&self) -> bool {
        self.oldest_close_ns.is_some()
    }

    /// What was used so far of a basis; the looks at a basis in the order of time.
    pub fn look(&mut self, look: &Look<'_>) {
        self.portions.look(look);
    }

    /// From now on this domain is split by another basis than its kind says; number them from 1.
    pub fn set_basis(&mut self, domain: usize, basis: usize) {
        self.portions.set_basis(domain, basis);
    }
}
