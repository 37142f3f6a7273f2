//! A span's life, as its client leads it: open, mark, weigh, close, cancel, vanish.
//!
//! Owns what is asked of a span before the attributor sees it, and the words for what the attributor refuses. Invariant: the
//! register has a span open exactly while the attributor has.

use std::collections::BTreeMap;

use super::access::Peer;
use super::reply_to::ConnectionId;
use super::service::{AccountOutcome, Caller, Service};
use super::span_registry::{OpenSpanEntry, SpanSize};
use super::{coarse_grid, metadata_limits};
use crate::attribution::{AttributionError, NewSpan, SpanKey, footprint};
use crate::clock;
use crate::protocol::{Access, CloseSpan, MarkPhase, MethodError, OpenSpan, OpenedSpan, SetWeight};

impl Service {
    /// OpenSpan.
    pub fn open_span(&mut self, caller: &Caller, mut call: OpenSpan) -> Result<OpenedSpan, MethodError> {
        let now_ns = self.clock.now_ns();
        let requested_ns = self.validate_instant(call.at_ns, now_ns)?;
        let is_coarse = caller.peer.access < Access::Span;
        let at_ns = if is_coarse { self.coarse_spans.opening_ns(requested_ns, now_ns) } else { requested_ns };
        let weight = call.weight.unwrap_or(1.0);
        if is_coarse {
            coarse_grid::check_weight(weight)?;
        }
        let span = match call.span.take() {
            Some(span) => {
                metadata_limits::check_identifier("span", &span, metadata_limits::MAX_SPAN_ID_BYTES)
                    .map(|()| span)?
            }
            None => self.span_ids.generate(),
        };
        let name = call.name.take().unwrap_or_default();
        metadata_limits::check_text("name", &name, metadata_limits::MAX_NAME_BYTES)?;
        let attributes = call.attributes.take().unwrap_or_default();
        metadata_limits::check_attributes(&attributes, 0)?;
        let size = self.registry.estimate_size(&span, &name, &attributes, is_coarse);
        self.registry.check_open(&caller.peer, &span, size)?;
        let subject = self.resolve_subject(caller, &call)?;
        let opening = NewSpan {
            span_id: span.clone(),
            name,
            attributes,
            weight,
            domains: call.domains.map(|names| self.domain_indices(&names)).transpose()?,
            at_ns,
            uid: caller.peer.uid,
            opened_unix_ns: clock::unix_ns().saturating_add(at_ns).saturating_sub(now_ns),
            subject,
        };
        let key = self.attributor.open(now_ns, opening).map_err(|error| method_error(error, &span, at_ns))?;
        self.registry.insert(caller.peer.uid, &span, key, caller.reply_to.connection, size);
        if is_coarse {
            self.coarse_spans.insert(key, requested_ns, at_ns);
        }
        self.set_sampling_rate(true);
        Ok(OpenedSpan { span })
    }

    /// MarkPhase.
    pub fn mark_phase(&mut self, peer: &Peer, call: MarkPhase) -> Result<(), MethodError> {
        let now_ns = self.clock.now_ns();
        let open = self.find_open_span(peer, &call.span)?;
        metadata_limits::check_identifier("phase", &call.phase, metadata_limits::MAX_PHASE_BYTES)?;
        let requested_ns = self.validate_edge(open.key, call.at_ns, now_ns)?;
        let at_ns = self.coarse_spans.edge_ns(open.key, requested_ns, now_ns)?;
        let size = self.registry.check_phase(peer, &open, &call.phase)?;
        let marked = self.attributor.begin_phase(now_ns, open.key, call.phase, at_ns);
        marked.map_err(|error| method_error(error, &call.span, at_ns))?;
        self.coarse_spans.add_moved_ns(open.key, requested_ns, at_ns);
        self.registry.record_phase(peer.uid, &call.span, size);
        Ok(())
    }

    /// SetWeight.
    pub fn set_weight(&mut self, peer: &Peer, call: &SetWeight) -> Result<(), MethodError> {
        let now_ns = self.clock.now_ns();
        let open = self.find_open_span(peer, &call.span)?;
        if peer.access < Access::Span {
            coarse_grid::check_weight(call.weight)?;
        }
        let requested_ns = self.validate_edge(open.key, call.at_ns, now_ns)?;
        let at_ns = self.coarse_spans.edge_ns(open.key, requested_ns, now_ns)?;
        let size = self.registry.check_weight(peer, &open)?;
        let set = self.attributor.set_weight(now_ns, open.key, call.weight, at_ns);
        set.map_err(|error| method_error(error, &call.span, at_ns))?;
        self.coarse_spans.add_moved_ns(open.key, requested_ns, at_ns);
        if size != SpanSize::default() {
            self.registry.record_weight_change(peer.uid, &call.span, size);
        }
        Ok(())
    }

    /// CloseSpan.
    pub fn close_span(
        &mut self,
        caller: &Caller,
        call: CloseSpan,
        wait: bool,
    ) -> Result<AccountOutcome, MethodError> {
        let now_ns = self.clock.now_ns();
        let peer = &caller.peer;
        let open = self.find_open_span(peer, &call.span)?;
        let requested_ns = self.validate_edge(open.key, call.at_ns, now_ns)?;
        let at_ns = self.coarse_spans.close_ns(open.key, requested_ns, now_ns)?;
        let attributes = call.attributes.unwrap_or_default();
        let text_bytes = metadata_limits::check_attributes(&attributes, open.attribute_count())?;
        let memory_bytes = footprint::attributes_bytes(&attributes);
        let growth = SpanSize { text_bytes, attribute_count: attributes.len(), memory_bytes };
        if !attributes.is_empty() {
            self.registry.check_growth(peer, growth)?;
        }
        let closed = self.attributor.close(now_ns, open.key, at_ns, attributes, false);
        closed.map_err(|error| method_error(error, &call.span, at_ns))?;
        self.coarse_spans.add_moved_ns(open.key, requested_ns, at_ns);
        self.registry.begin_close(peer.uid, &call.span, growth, wait.then_some(caller.reply_to));
        if wait {
            return Ok(AccountOutcome::Deferred);
        }
        self.refresh_if_stale(now_ns);
        let lookup = self.registry.find(peer.uid, &call.span)?;
        self.current_account(now_ns, &call.span, lookup)
            .map(|account| AccountOutcome::Ready(Box::new(account)))
    }

    /// CancelSpan.
    pub fn cancel_span(&mut self, peer: &Peer, span: &str) -> Result<(), MethodError> {
        let now_ns = self.clock.now_ns();
        let open = self.find_open_span(peer, span)?;
        let requested_ns = self.now_or_opening_ns(open.key, now_ns);
        let at_ns = self.coarse_spans.edge_ns(open.key, requested_ns, now_ns)?;
        self.attributor.cancel(now_ns, open.key, at_ns).map_err(|error| method_error(error, span, at_ns))?;
        self.coarse_spans.remove(open.key);
        let journal_key = self.registry.remove_open(peer.uid, span);
        self.remove_from_journal(journal_key);
        Ok(())
    }

    /// A connection is gone: its open spans end now, as abandoned.
    pub fn close_connection(&mut self, connection: ConnectionId) {
        let now_ns = self.clock.now_ns();
        for key in self.registry.close_connection(connection) {
            let requested_ns = self.now_or_opening_ns(key, now_ns);
            let at_ns = self.coarse_spans.close_ns(key, requested_ns, now_ns).unwrap_or(requested_ns);
            // The register has the span open, so the attributor has; and the attributor takes an abandoned close at any instant.
            let _ = self.attributor.close(now_ns, key, at_ns, BTreeMap::new(), true);
            self.coarse_spans.add_moved_ns(key, requested_ns, at_ns);
        }
    }

    /// Whether the caller has an open span of this name.
    pub fn has_open_span(&self, peer: &Peer, span: &str) -> bool {
        self.find_open_span(peer, span).is_ok()
    }

    /// Where an edge of an open span is asked for: where the client names an instant there, else now.
    fn validate_edge(&self, key: SpanKey, at_ns: Option<i64>, now_ns: u64) -> Result<u64, MethodError> {
        match at_ns {
            Some(_) => self.validate_instant(at_ns, now_ns),
            None => Ok(self.now_or_opening_ns(key, now_ns)),
        }
    }

    /// Now, or when the span began where that lies a moment ahead: nothing of it is earlier.
    fn now_or_opening_ns(&self, key: SpanKey, now_ns: u64) -> u64 {
        let requested_ns = self.coarse_spans.requested_ns(key).or_else(|| self.attributor.requested_ns(key));
        requested_ns.map_or(now_ns, |requested_ns| requested_ns.max(now_ns))
    }

    /// The caller's open span of this name. A span that its user opened with more access is none of a coarse caller's,
    /// and answers as one that does not exist.
    fn find_open_span(&self, peer: &Peer, span: &str) -> Result<OpenSpanEntry, MethodError> {
        let open = self.registry.find_open(peer.uid, span);
        if peer.access >= Access::Span {
            return open;
        }
        let missing = || MethodError::NoSuchSpan { span: span.to_owned() };
        match open {
            Ok(open) if !self.coarse_spans.contains(open.key) => Err(missing()),
            Err(MethodError::AlreadyClosed { .. }) => self.find_visible_span(peer, span).and(open),
            other => other,
        }
    }

    fn domain_indices(&self, names: &[String]) -> Result<Vec<usize>, MethodError> {
        if names.is_empty() {
            let reason = "is empty; leave it out for all of them".to_owned();
            return Err(MethodError::InvalidValue { field: "domains".into(), reason });
        }
        let index = |name: &String| {
            self.domain_index
                .get(name)
                .copied()
                .ok_or_else(|| MethodError::NoSuchDomain { domain: name.clone() })
        };
        let mut indices = names.iter().map(index).collect::<Result<Vec<_>, _>>()?;
        indices.sort_unstable();
        indices.dedup();
        Ok(indices)
    }
}

/// The attributor's refusal in the words of the wire.
fn method_error(error: AttributionError, span: &str, at_ns: u64) -> MethodError {
    match error {
        AttributionError::NoSuchSpan => MethodError::NoSuchSpan { span: span.to_owned() },
        AttributionError::AlreadyClosed => MethodError::AlreadyClosed { span: span.to_owned() },
        AttributionError::InvalidTime { earliest_ns, latest_ns } => {
            MethodError::InvalidTime { at_ns: at_ns.try_into().unwrap_or(i64::MAX), earliest_ns, latest_ns }
        }
        AttributionError::InvalidValue { field, reason } => {
            MethodError::InvalidValue { field: field.to_owned(), reason }
        }
        AttributionError::LimitReached { quota, limit } => {
            MethodError::QuotaExceeded { quota: quota.to_owned(), limit: limit as u64 }
        }
    }
}
