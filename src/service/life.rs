//! A span's life, as its client leads it: open, mark, weigh, close, cancel, vanish.
//!
//! Owns what is asked of a span before the ledger sees it, and the words for what the ledger refuses. Invariant: the
//! register has a span open exactly while the ledger has.

use std::collections::BTreeMap;

use super::access::Peer;
use super::register::{Open, Size};
use super::service::{Caller, Closed, Service};
use super::ticket::ConnectionId;
use super::{coarse, notes};
use crate::attribution::{Opening, Refused, SpanKey, footprint};
use crate::clock;
use crate::protocol::{Access, CloseSpan, MarkPhase, OpenSpan, OpenedSpan, Refusal, SetWeight};

impl Service {
    /// OpenSpan.
    pub fn open(&mut self, caller: &Caller, mut call: OpenSpan) -> Result<OpenedSpan, Refusal> {
        let now_ns = self.clock.now_ns();
        let asked_ns = self.edge(call.at_ns, now_ns)?;
        let coarse = caller.peer.access < Access::Span;
        let at_ns = if coarse { self.coarse.opening_ns(asked_ns, now_ns) } else { asked_ns };
        let weight = call.weight.unwrap_or(1.0);
        if coarse {
            coarse::check_weight(weight)?;
        }
        let span = match call.span.take() {
            Some(span) => notes::check_word("span", &span, notes::SPAN_BYTES).map(|()| span)?,
            None => self.tokens.next(),
        };
        let name = call.name.take().unwrap_or_default();
        notes::check_text("name", &name, notes::NAME_BYTES)?;
        let attributes = call.attributes.take().unwrap_or_default();
        notes::check_attributes(&attributes, 0)?;
        let size = self.register.size_of(&span, &name, &attributes, coarse);
        self.register.check_room(&caller.peer, &span, size)?;
        let subject = self.subject_of(caller, &call)?;
        let opening = Opening {
            span: span.clone(),
            name,
            attributes,
            weight,
            domains: call.domains.map(|names| self.domain_indices(&names)).transpose()?,
            at_ns,
            uid: caller.peer.uid,
            unix_ns: clock::unix_ns().saturating_add(at_ns).saturating_sub(now_ns),
            subject,
        };
        let key = self.ledger.open(now_ns, opening).map_err(|refused| refusal(refused, &span, at_ns))?;
        self.register.enter(caller.peer.uid, &span, key, caller.ticket.connection, size);
        if coarse {
            self.coarse.enter(key, asked_ns, at_ns);
        }
        self.hurry(true);
        Ok(OpenedSpan { span })
    }

    /// MarkPhase.
    pub fn mark(&mut self, peer: &Peer, call: MarkPhase) -> Result<(), Refusal> {
        let now_ns = self.clock.now_ns();
        let open = self.open_span_of(peer, &call.span)?;
        notes::check_word("phase", &call.phase, notes::PHASE_BYTES)?;
        let asked_ns = self.edge_of_open(open.key, call.at_ns, now_ns)?;
        let at_ns = self.coarse.edge_ns(open.key, asked_ns, now_ns)?;
        let size = self.register.check_phase(peer, &open, &call.phase)?;
        let marked = self.ledger.mark(now_ns, open.key, call.phase, at_ns);
        marked.map_err(|refused| refusal(refused, &call.span, at_ns))?;
        self.coarse.note_moved(open.key, asked_ns, at_ns);
        self.register.note_phase(peer.uid, &call.span, size);
        Ok(())
    }

    /// SetWeight.
    pub fn set_weight(&mut self, peer: &Peer, call: &SetWeight) -> Result<(), Refusal> {
        let now_ns = self.clock.now_ns();
        let open = self.open_span_of(peer, &call.span)?;
        if peer.access < Access::Span {
            coarse::check_weight(call.weight)?;
        }
        let asked_ns = self.edge_of_open(open.key, call.at_ns, now_ns)?;
        let at_ns = self.coarse.edge_ns(open.key, asked_ns, now_ns)?;
        let size = self.register.check_weight(peer, &open)?;
        let set = self.ledger.set_weight(now_ns, open.key, call.weight, at_ns);
        set.map_err(|refused| refusal(refused, &call.span, at_ns))?;
        self.coarse.note_moved(open.key, asked_ns, at_ns);
        if size != Size::default() {
            self.register.note_weight(peer.uid, &call.span, size);
        }
        Ok(())
    }

    /// CloseSpan.
    pub fn close(&mut self, caller: &Caller, call: CloseSpan, wait: bool) -> Result<Closed, Refusal> {
        let now_ns = self.clock.now_ns();
        let peer = &caller.peer;
        let open = self.open_span_of(peer, &call.span)?;
        let asked_ns = self.edge_of_open(open.key, call.at_ns, now_ns)?;
        let at_ns = self.coarse.close_ns(open.key, asked_ns, now_ns)?;
        let attributes = call.attributes.unwrap_or_default();
        let noted = notes::check_attributes(&attributes, open.pairs())?;
        let held = footprint::attributes(&attributes);
        let more = Size { noted, pairs: attributes.len(), held };
        if !attributes.is_empty() {
            self.register.check_growth(peer, more)?;
        }
        let closed = self.ledger.close(now_ns, open.key, at_ns, attributes, false);
        closed.map_err(|refused| refusal(refused, &call.span, at_ns))?;
        self.coarse.note_moved(open.key, asked_ns, at_ns);
        self.register.close(peer.uid, &call.span, more, wait.then_some(caller.ticket));
        if wait {
            return Ok(Closed::Awaited);
        }
        self.freshen(now_ns);
        let known = self.register.known(peer.uid, &call.span)?;
        self.so_far(now_ns, &call.span, known).map(|account| Closed::Account(Box::new(account)))
    }

    /// CancelSpan.
    pub fn cancel(&mut self, peer: &Peer, span: &str) -> Result<(), Refusal> {
        let now_ns = self.clock.now_ns();
        let open = self.open_span_of(peer, span)?;
        let asked_ns = self.now_or_opening_ns(open.key, now_ns);
        let at_ns = self.coarse.edge_ns(open.key, asked_ns, now_ns)?;
        self.ledger.cancel(now_ns, open.key, at_ns).map_err(|refused| refusal(refused, span, at_ns))?;
        self.coarse.forget(open.key);
        let journalled = self.register.cancel(peer.uid, span);
        self.unjournal(journalled);
        Ok(())
    }

    /// A connection is gone: its open spans end now, as abandoned.
    pub fn vanished(&mut self, connection: ConnectionId) {
        let now_ns = self.clock.now_ns();
        for key in self.register.abandon(connection) {
            let asked_ns = self.now_or_opening_ns(key, now_ns);
            let at_ns = self.coarse.close_ns(key, asked_ns, now_ns).unwrap_or(asked_ns);
            // The register has the span open, so the ledger has; and the ledger takes an abandoned close at any instant.
            let _ = self.ledger.close(now_ns, key, at_ns, BTreeMap::new(), true);
            self.coarse.note_moved(key, asked_ns, at_ns);
        }
    }

    /// Whether the caller has an open span of this name.
    pub fn has_open(&self, peer: &Peer, span: &str) -> bool {
        self.open_span_of(peer, span).is_ok()
    }

    /// Where an edge of an open span is asked for: where the client names an instant there, else now.
    fn edge_of_open(&self, key: SpanKey, at_ns: Option<i64>, now_ns: u64) -> Result<u64, Refusal> {
        match at_ns {
            Some(_) => self.edge(at_ns, now_ns),
            None => Ok(self.now_or_opening_ns(key, now_ns)),
        }
    }

    /// Now, or when the span began where that lies a moment ahead: nothing of it is earlier.
    fn now_or_opening_ns(&self, key: SpanKey, now_ns: u64) -> u64 {
        let asked_ns = self.coarse.asked_ns(key).or_else(|| self.ledger.asked_ns(key));
        asked_ns.map_or(now_ns, |asked_ns| asked_ns.max(now_ns))
    }

    /// The caller's open span of this name. A span that its user opened with more access is none of a coarse caller's,
    /// and answers as one that does not exist.
    fn open_span_of(&self, peer: &Peer, span: &str) -> Result<Open, Refusal> {
        let open = self.register.open(peer.uid, span);
        if peer.access >= Access::Span {
            return open;
        }
        let missing = || Refusal::NoSuchSpan { span: span.to_owned() };
        match open {
            Ok(open) if !self.coarse.has(open.key) => Err(missing()),
            Err(Refusal::AlreadyClosed { .. }) => self.known_to(peer, span).and(open),
            other => other,
        }
    }

    fn domain_indices(&self, names: &[String]) -> Result<Vec<usize>, Refusal> {
        if names.is_empty() {
            let reason = "is empty; leave it out for all of them".to_owned();
            return Err(Refusal::InvalidValue { field: "domains".into(), reason });
        }
        let index = |name: &String| {
            self.index.get(name).copied().ok_or_else(|| Refusal::NoSuchDomain { domain: name.clone() })
        };
        let mut indices = names.iter().map(index).collect::<Result<Vec<_>, _>>()?;
        indices.sort_unstable();
        indices.dedup();
        Ok(indices)
    }
}

/// The ledger's refusal in the words of the wire.
fn refusal(refused: Refused, span: &str, at_ns: u64) -> Refusal {
    match refused {
        Refused::NoSuchSpan => Refusal::NoSuchSpan { span: span.to_owned() },
        Refused::AlreadyClosed => Refusal::AlreadyClosed { span: span.to_owned() },
        Refused::InvalidTime { earliest_ns, latest_ns } => {
            Refusal::InvalidTime { at_ns: at_ns.try_into().unwrap_or(i64::MAX), earliest_ns, latest_ns }
        }
        Refused::InvalidValue { field, reason } => Refusal::InvalidValue { field: field.to_owned(), reason },
        Refused::Full { quota, limit } => {
            Refusal::QuotaExceeded { quota: quota.to_owned(), limit: limit as u64 }
        }
    }
}
