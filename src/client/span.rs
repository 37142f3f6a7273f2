//! A span that closes when its guard goes.
//!
//! Owns the pairing of open and close. A guard that is dropped closes its span at that instant, oneway and in silence,
//! also while a panic unwinds; [`Span::close`] gives the account.

use std::collections::BTreeMap;

use super::{Client, Failure};
use crate::attribution::account::Account;
use crate::clock::monotonic_ns;
use crate::protocol::{CancelSpan, CloseSpan, MarkPhase, SetWeight};

/// An open span.
#[derive(Debug)]
#[must_use = "a span closes when its guard is dropped"]
pub struct Span<'client> {
    client: &'client Client,
    id: String,
    attributes: BTreeMap<String, String>,
    open: bool,
}

impl<'client> Span<'client> {
    pub(super) fn new(client: &'client Client, id: String) -> Self {
        Span { client, id, attributes: BTreeMap::new(), open: true }
    }

    /// Its name in the protocol.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Notes something that is sent with the close.
    pub fn note(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.attributes.insert(key.into(), value.into());
    }

    /// Ends the running phase now and begins `phase`.
    pub fn phase(&mut self, phase: &str) -> Result<(), Failure> {
        let mark = MarkPhase { span: self.id.clone(), phase: phase.to_owned(), at_ns: Some(now()) };
        self.client.call(mark).map(drop)
    }

    /// Changes its part of shared energy from now on.
    pub fn set_weight(&mut self, weight: f64) -> Result<(), Failure> {
        let change = SetWeight { span: self.id.clone(), weight, at_ns: Some(now()) };
        self.client.call(change).map(drop)
    }

    /// Closes it now and waits for the final account.
    pub fn close(self) -> Result<Account, Failure> {
        self.close_at(now())
    }

    /// Closes it at an instant of the monotonic clock and waits for the final account.
    pub fn close_at(mut self, at_ns: i64) -> Result<Account, Failure> {
        self.open = false;
        self.client.close(CloseSpan { wait_settled: Some(true), ..self.closing(at_ns) })
    }

    /// Forgets it.
    pub fn cancel(mut self) -> Result<(), Failure> {
        self.open = false;
        self.client.call(CancelSpan { span: self.id.clone() }).map(drop)
    }

    fn closing(&mut self, at_ns: i64) -> CloseSpan {
        let attributes = Some(std::mem::take(&mut self.attributes)).filter(|notes| !notes.is_empty());
        CloseSpan { span: self.id.clone(), attributes, at_ns: Some(at_ns), wait_settled: None }
    }
}

impl Drop for Span<'_> {
    fn drop(&mut self) {
        if self.open {
            let closing = self.closing(now());
            // Nobody is left to tell; a daemon that is gone has closed the span as abandoned.
            let _ = self.client.oneway(closing);
        }
    }
}

fn now() -> i64 {
    i64::try_from(monotonic_ns()).unwrap_or(i64::MAX)
}
