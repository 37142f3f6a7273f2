//! The attributor together with the spans of coarse access.
//!
//! Owns both and keeps them in step: an edge of a coarse span moves to the grid, and its account is withheld and rounded. The
//! edges and accounts of spans pass through this type only. Invariant: a coarse span is registered here from its opening in
//! the attributor until its account is released or it is cancelled.

use std::collections::BTreeMap;

use wattspan_client::account::Account;
use wattspan_client::protocol::Access;

use super::access::Peer;
use super::coarse_spans::CoarseSpans;
use crate::attribution::{AttributionError, AttributionSettings, Attributor, NewSpan, SpanKey};
use crate::domain::Domain;

/// The attributor, and the coarse spans among its spans.
#[derive(Debug)]
pub struct TieredAttributor {
    inner: Attributor,
    coarse_spans: CoarseSpans,
}

/// The opening of a span that is not open yet.
#[derive(Debug, Clone, Copy)]
pub struct SpanOpening {
    requested_ns: u64,
    at_ns: u64,
    is_coarse: bool,
}

impl SpanOpening {
    /// The instant at which the span opens.
    pub fn at_ns(&self) -> u64 {
        self.at_ns
    }

    /// Whether the span's account will be withheld after it settles.
    pub fn is_withheld(&self) -> bool {
        self.is_coarse
    }
}

/// A phase change, weight change or closing of an open span.
#[derive(Debug, Clone, Copy)]
pub struct SpanEdge {
    key: SpanKey,
    requested_ns: u64,
    /// The instant at which the edge takes effect.
    at_ns: u64,
    is_coarse: bool,
}

impl SpanEdge {
    /// The instant that the client requested.
    pub fn requested_ns(&self) -> u64 {
        self.requested_ns
    }

    /// The instant at which the edge takes effect.
    pub fn at_ns(&self) -> u64 {
        self.at_ns
    }
}

impl TieredAttributor {
    /// Creates an attributor over these domains, as [`Attributor::new`] does.
    pub fn new(domains: Vec<Domain>, settings: AttributionSettings) -> Self {
        let coarse_spans = CoarseSpans::new(settings.horizon_ns);
        Self { inner: Attributor::new(domains, settings), coarse_spans }
    }

    /// The attributor, for figures that no coarse caller receives: balances, the store's journal, what is due.
    pub fn inner(&self) -> &Attributor {
        &self.inner
    }

    /// The attributor, for domains, readings and process usage. Edges go through the methods of this type.
    pub fn inner_mut(&mut self) -> &mut Attributor {
        &mut self.inner
    }

    /// The opening of a peer's new span that is requested for an instant.
    pub fn opening(&self, peer: &Peer, requested_ns: u64, now_ns: u64) -> SpanOpening {
        let is_coarse = peer.access < Access::Span;
        let at_ns = if is_coarse { self.coarse_spans.opening_ns(requested_ns, now_ns) } else { requested_ns };
        SpanOpening { requested_ns, at_ns, is_coarse }
    }

    /// Opens a span at an opening, which sets its `at_ns`.
    ///
    /// # Errors
    /// As for [`Attributor::open`].
    pub fn open(
        &mut self,
        now_ns: u64,
        opening: SpanOpening,
        mut new_span: NewSpan,
    ) -> Result<SpanKey, AttributionError> {
        new_span.at_ns = opening.at_ns;
        let key = self.inner.open(now_ns, new_span)?;
        if opening.is_coarse {
            self.coarse_spans.insert(key, opening.requested_ns, opening.at_ns);
        }
        Ok(key)
    }

    /// The edge of an open span that is requested for an instant; `None`: for now, or for the opening if that lies in the
    /// future, since no edge is before the opening.
    ///
    /// # Errors
    /// `InvalidTime`: before the opening of a coarse span. For other spans the attributor checks this.
    pub fn edge(
        &self,
        key: SpanKey,
        requested_ns: Option<u64>,
        now_ns: u64,
    ) -> Result<SpanEdge, AttributionError> {
        let Some(requested_ns) = requested_ns else { return Ok(self.edge_from(key, now_ns, now_ns)) };
        match self.coarse_spans.requested_ns(key) {
            None => Ok(fine_edge(key, requested_ns)),
            Some(earliest_ns) if requested_ns < earliest_ns => {
                Err(AttributionError::InvalidTime { earliest_ns, latest_ns: now_ns })
            }
            Some(_) => Ok(self.coarse_edge(key, requested_ns, now_ns)),
        }
    }

    /// An edge at an instant, or at the opening if that is later.
    fn edge_from(&self, key: SpanKey, at_ns: u64, now_ns: u64) -> SpanEdge {
        match self.coarse_spans.requested_ns(key) {
            None => fine_edge(key, self.opening_ns(key).map_or(at_ns, |opening_ns| opening_ns.max(at_ns))),
            Some(opening_ns) => self.coarse_edge(key, opening_ns.max(at_ns), now_ns),
        }
    }

    fn coarse_edge(&self, key: SpanKey, requested_ns: u64, now_ns: u64) -> SpanEdge {
        let at_ns = self.coarse_spans.edge_ns(key, requested_ns, now_ns);
        SpanEdge { key, requested_ns, at_ns, is_coarse: true }
    }

    /// The instant at which an open span was to open: on the grid if it is coarse. `None` if it is not open.
    pub fn opening_ns(&self, key: SpanKey) -> Option<u64> {
        self.inner.requested_ns(key)
    }

    /// Ends the current phase of a span and begins the next.
    ///
    /// # Errors
    /// As for [`Attributor::begin_phase`].
    pub fn begin_phase(
        &mut self,
        now_ns: u64,
        edge: SpanEdge,
        phase: String,
    ) -> Result<(), AttributionError> {
        self.inner.begin_phase(now_ns, edge.key, phase, edge.at_ns)?;
        self.record_move(edge);
        Ok(())
    }

    /// Sets the weight of a span from an edge on.
    ///
    /// # Errors
    /// As for [`Attributor::set_weight`].
    pub fn set_weight(&mut self, now_ns: u64, edge: SpanEdge, weight: f64) -> Result<(), AttributionError> {
        self.inner.set_weight(now_ns, edge.key, weight, edge.at_ns)?;
        self.record_move(edge);
        Ok(())
    }

    /// Closes a span and adds attributes to it.
    ///
    /// # Errors
    /// As for [`Attributor::close`].
    pub fn close(
        &mut self,
        now_ns: u64,
        edge: SpanEdge,
        attributes: BTreeMap<String, String>,
    ) -> Result<(), AttributionError> {
        self.close_at(now_ns, edge, attributes, false)
    }

    /// Closes an open span of a client that disconnected at `at_ns`.
    pub fn abandon(&mut self, now_ns: u64, key: SpanKey, at_ns: u64) {
        let edge = self.edge_from(key, at_ns, now_ns);
        // Cannot fail: the span is open, and an abandoned close is valid at any instant.
        let _ = self.close_at(now_ns, edge, BTreeMap::new(), true);
    }

    fn close_at(
        &mut self,
        now_ns: u64,
        mut edge: SpanEdge,
        attributes: BTreeMap<String, String>,
        abandoned: bool,
    ) -> Result<(), AttributionError> {
        if edge.is_coarse {
            edge.at_ns = self.coarse_spans.close_ns(edge.key, edge.at_ns);
        }
        self.inner.close(now_ns, edge.key, edge.at_ns, attributes, abandoned)?;
        self.record_move(edge);
        Ok(())
    }

    /// Cancels an open span now. It has no account.
    ///
    /// # Errors
    /// As for [`Attributor::cancel`].
    pub fn cancel(&mut self, now_ns: u64, key: SpanKey) -> Result<(), AttributionError> {
        let edge = self.edge_from(key, now_ns, now_ns);
        self.inner.cancel(now_ns, key, edge.at_ns)?;
        if edge.is_coarse {
            self.coarse_spans.remove(key);
        }
        Ok(())
    }

    fn record_move(&mut self, edge: SpanEdge) {
        if edge.is_coarse {
            self.coarse_spans.add_moved_ns(edge.key, edge.requested_ns, edge.at_ns);
        }
    }

    /// Whether a peer may see an unsettled span of its own or, with telemetry access, of any user. With coarse access only
    /// coarse spans are visible.
    pub fn is_visible_to(&self, peer: &Peer, key: SpanKey) -> bool {
        peer.access >= Access::Span || self.coarse_spans.contains(key)
    }

    /// The account as of now of a span that is not final; without figures if the span is coarse.
    pub fn provisional_account(&self, now_ns: u64, key: SpanKey) -> Option<Account> {
        self.coarse_spans.provisional_account(key, || self.inner.account(now_ns, key).ok())
    }

    /// Appends the accounts of at most `limit` settled spans to `into`, without those of coarse spans, which are withheld.
    /// Returns whether there are more settled spans.
    pub fn drain_settled_up_to(&mut self, limit: usize, now_ns: u64, into: &mut Vec<Account>) -> bool {
        let coarse_spans = &mut self.coarse_spans;
        self.inner.drain_settled_up_to(limit, |settled| {
            into.extend(coarse_spans.withhold(settled.key(), settled.account(), now_ns));
        })
    }

    /// Removes and returns the withheld accounts whose time of release has come, with the keys of their spans.
    pub fn release_withheld(&mut self, now_ns: u64) -> Vec<(SpanKey, Account)> {
        self.coarse_spans.release(now_ns)
    }

    /// The time of the next release of withheld accounts.
    pub fn next_release_ns(&self) -> Option<u64> {
        self.coarse_spans.next_release_ns()
    }

    /// Frees memory that many settled spans used, as [`Attributor::shrink`] does.
    pub fn shrink(&mut self) {
        self.inner.shrink();
        self.coarse_spans.shrink();
    }
}

/// The edge of a span that is not coarse takes effect when it is requested.
fn fine_edge(key: SpanKey, requested_ns: u64) -> SpanEdge {
    SpanEdge { key, requested_ns, at_ns: requested_ns, is_coarse: false }
}
