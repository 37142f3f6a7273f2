//! A settled span's figures on their way out of the ledger.
//!
//! Owns nothing: a view that lasts while the ledger hands the span out. Whoever wants words asks for the account;
//! whoever only adds up takes the shares and spares them.

use super::account::Account;
use super::mark::{Mark, whole_uj};
use super::portion::Portions;
use super::result;
use super::span::Span;
use super::terms::SpanKey;
use super::track::Track;

/// A settled span's figures, before they become words.
pub struct Settled<'a> {
    pub(super) key: SpanKey,
    pub(super) span: &'a Span,
    pub(super) marks: &'a [Mark],
    pub(super) tracks: &'a [Track],
    pub(super) portions: &'a Portions,
}

impl Settled<'_> {
    /// The span's key; unknown to the ledger from now on.
    pub fn key(&self) -> SpanKey {
        self.key
    }

    /// Its share of one domain, microjoules; `None` where it does not use it.
    pub fn share_uj(&self, domain: usize) -> Option<u64> {
        let used = domain < self.marks.len() && (self.span.scope >> domain) & 1 == 1;
        used.then(|| whole_uj(self.marks[domain].g))
    }

    /// The whole account.
    pub fn account(&self) -> Account {
        let mut account = result::settled(self.span, self.marks, self.tracks);
        self.portions.tell(&mut account, self.span, self.key, self.tracks);
        account
    }
}
