//! A span that closes when its guard goes.
//!
//! Owns the pairing of open and close. A guard that is dropped closes its span at that instant, oneway and in silence,
//! also while a panic unwinds; [`SpanGuard::close`] gives the account.

use std::collections::BTreeMap;

use super::{Client, ClientError};
use crate::attribution::account::Account;
use crate::clock::monotonic_now_ns;
use crate::protocol::{CancelSpan, CloseSpan, MarkPhase, SetWeight};

/// An open span.
#[derive(Debug)]
#[must_use = "a span closes when its guard is dropped"]
pub struct SpanGuard<'client> {
    client: &'client Client,
    id: String,
    attributes: BTreeMap<String, String>,
    is_open: bool,
}

impl<'client> SpanGuard<'client> {
    pub(super) fn new(client: &'client Client, id: String) -> Self {
        SpanGuard { client, id, attributes: BTreeMap::new(), is_open: true }
    }

    /// Its name in the protocol.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Sets an attribute that is sent with the close.
    pub fn set_attribute(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.attributes.insert(key.into(), value.into());
    }

    /// Ends the running phase now and begins `phase`.
    pub fn mark_phase(&mut self, phase: &str) -> Result<(), ClientError> {
        let request =
            MarkPhase { span: self.id.clone(), phase: phase.to_owned(), at_ns: Some(monotonic_now_ns()) };
        self.client.call(request).map(drop)
    }

    /// Changes its part of shared energy from now on.
    pub fn set_weight(&mut self, weight: f64) -> Result<(), ClientError> {
        let request = SetWeight { span: self.id.clone(), weight, at_ns: Some(monotonic_now_ns()) };
        self.client.call(request).map(drop)
    }

    /// Closes it now and waits for the final account.
    pub fn close(self) -> Result<Account, ClientError> {
        self.close_at(monotonic_now_ns())
    }

    /// Closes it at an instant of the monotonic clock and waits for the final account.
    pub fn close_at(mut self, at_ns: i64) -> Result<Account, ClientError> {
        self.is_open = false;
        self.client.close_span(CloseSpan { wait_settled: Some(true), ..self.close_request(at_ns) })
    }

    /// Forgets it.
    pub fn cancel(mut self) -> Result<(), ClientError> {
        self.is_open = false;
        self.client.call(CancelSpan { span: self.id.clone() }).map(drop)
    }

    fn close_request(&mut self, at_ns: i64) -> CloseSpan {
        let attributes =
            Some(std::mem::take(&mut self.attributes)).filter(|attributes| !attributes.is_empty());
        CloseSpan { span: self.id.clone(), attributes, at_ns: Some(at_ns), wait_settled: None }
    }
}

impl Drop for SpanGuard<'_> {
    fn drop(&mut self) {
        if self.is_open {
            let request = self.close_request(monotonic_now_ns());
            // The error has no receiver; a daemon that is gone has closed the span as abandoned.
            let _ = self.client.oneway(request);
        }
    }
}
