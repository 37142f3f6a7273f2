//! A settled span's figures, as the attributor returns them.
//!
//! Owns nothing: a view that lasts while the attributor drains its settled spans. `account` builds the whole account;
//! `share_uj` alone is cheaper.

use super::account::Account;
use super::account_builder;
use super::domain_timeline::DomainTimeline;
use super::process_share::ProcessShares;
use super::request::SpanKey;
use super::span::Span;
use super::span_domain_state::{SpanDomainState, whole_uj};

/// A settled span's figures, before an account is built of them.
pub struct SettledSpan<'a> {
    pub(super) key: SpanKey,
    pub(super) span: &'a Span,
    pub(super) domain_states: &'a [SpanDomainState],
    pub(super) timelines: &'a [DomainTimeline],
    pub(super) process_shares: &'a ProcessShares,
}

impl SettledSpan<'_> {
    /// The span's key; unknown to the attributor from now on.
    pub fn key(&self) -> SpanKey {
        self.key
    }

    /// Its share of one domain, microjoules; `None` where it does not use it.
    pub fn share_uj(&self, domain: usize) -> Option<u64> {
        let used = domain < self.domain_states.len() && (self.span.scope >> domain) & 1 == 1;
        used.then(|| whole_uj(self.domain_states[domain].g))
    }

    /// The whole account.
    pub fn account(&self) -> Account {
        let mut account = account_builder::settled_account(self.span, self.domain_states, self.timelines);
        self.process_shares.add_to_account(&mut account, self.span, self.key, self.timelines);
        account
    }
}
