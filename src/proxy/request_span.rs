//! One inference's span: opened when the request arrives, closed whatever happens.
//!
//! Owns the span from arrival to end. Invariant: it is ended exactly once; one that is dropped (the client left, the
//! proxy stops) is closed at that instant with the energy it used, because that was used all the same.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::annotation::EnergyAnnotation;
use super::response_reader::ResponseMetadata;
use super::span_client::{PendingClose, SpanClient, SpanHandle, UnmeasuredReason};
use crate::clock::monotonic_now_ns;
use crate::protocol::{CloseSpan, OpenSpan};

/// Longest value of an attribute that the daemon takes, in bytes.
const MAX_ATTRIBUTE_BYTES: usize = 1024;

/// Longest name of a span that the daemon takes, in bytes.
const MAX_NAME_BYTES: usize = 256;

/// An inference's span.
pub struct RequestSpan {
    handle: Result<SpanHandle, UnmeasuredReason>,
    /// Its name in the protocol; also where there is no span of that name.
    pub id: String,
    attributes: BTreeMap<String, String>,
    has_phases: bool,
    ended: bool,
}

/// The annotation of a span that has ended.
pub enum PendingAnnotation {
    /// The account may come.
    Pending(String, PendingClose),
    /// There will be none.
    Unmeasured(UnmeasuredReason),
}

impl PendingAnnotation {
    /// The annotation, after a bounded wait.
    pub async fn wait(self, metadata: ResponseMetadata) -> EnergyAnnotation {
        match self {
            PendingAnnotation::Pending(span, pending_close) => {
                EnergyAnnotation::from_outcome(&span, pending_close.wait().await, &metadata)
            }
            PendingAnnotation::Unmeasured(reason) => EnergyAnnotation::unmeasured(reason),
        }
    }
}

impl RequestSpan {
    /// Opens a span that begins now. With `has_phases` its decode will be marked.
    pub fn open(
        client: &SpanClient,
        id: String,
        name: &str,
        attributes: BTreeMap<String, String>,
        has_phases: bool,
    ) -> Self {
        let at_ns = monotonic_now_ns();
        let attributes =
            attributes.into_iter().map(|(key, value)| (key, sanitize(&value, MAX_ATTRIBUTE_BYTES))).collect();
        let request = OpenSpan {
            name: Some(sanitize(name, MAX_NAME_BYTES)),
            attributes: Some(attributes),
            at_ns: Some(at_ns),
            ..OpenSpan::default()
        };
        let handle = client.open_span(id.clone(), request);
        if handle.is_err() {
            client.state.counters.unmeasured.increment();
        }
        RequestSpan { handle, id, attributes: BTreeMap::new(), has_phases, ended: false }
    }

    /// The first token of the answer is here.
    pub fn mark_decode(&mut self) {
        if let (Ok(handle), true, false) = (&self.handle, self.has_phases, self.ended) {
            handle.mark_phase("decode", monotonic_now_ns());
        }
    }

    /// It weighs so much from now on.
    pub fn set_weight(&self, weight: f64) {
        if let (Ok(handle), false) = (&self.handle, self.ended) {
            handle.set_weight(weight);
        }
    }

    /// Sets an attribute that is sent with the close.
    pub fn set_attribute(&mut self, key: &str, value: impl Into<String>) {
        self.attributes.insert(key.to_owned(), sanitize(&value.into(), MAX_ATTRIBUTE_BYTES));
    }

    /// Sets the attributes that the reply states.
    pub fn set_response_attributes(&mut self, metadata: &ResponseMetadata) {
        if let Some(model) = &metadata.model {
            self.set_attribute("gen_ai.response.model", model.clone());
        }
        if let Some(tokens) = metadata.input_tokens {
            self.set_attribute("gen_ai.usage.input_tokens", tokens.to_string());
        }
        match metadata.output_tokens {
            Some(tokens) => self.set_attribute("gen_ai.usage.output_tokens", tokens.to_string()),
            // A server that was not asked for usage gives none; its chunks are no tokens, and say so.
            None if metadata.content_chunks > 0 => {
                self.set_attribute("wattspan.content_chunks", metadata.content_chunks.to_string());
            }
            None => {}
        }
        if metadata.error {
            self.set_attribute("error.type", "told in the stream");
        }
    }

    /// Ends it now; `None` where it has ended already.
    pub fn close(&mut self) -> Option<PendingAnnotation> {
        if std::mem::replace(&mut self.ended, true) {
            return None;
        }
        Some(match std::mem::replace(&mut self.handle, Err(UnmeasuredReason::DaemonUnavailable)) {
            Ok(handle) => {
                let attributes =
                    Some(std::mem::take(&mut self.attributes)).filter(|attributes| !attributes.is_empty());
                let span = handle.id().to_owned();
                let request =
                    CloseSpan { attributes, at_ns: Some(monotonic_now_ns()), ..CloseSpan::default() };
                PendingAnnotation::Pending(span, handle.close(request))
            }
            Err(reason) => PendingAnnotation::Unmeasured(reason),
        })
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Forgets it: the request cannot have reached the server.
    pub fn cancel(&mut self) {
        self.ended = true;
        if let Ok(handle) = std::mem::replace(&mut self.handle, Err(UnmeasuredReason::DaemonUnavailable)) {
            handle.cancel();
        }
    }
}

impl Drop for RequestSpan {
    fn drop(&mut self) {
        if !self.ended {
            self.attributes.entry("error.type".into()).or_insert_with(|| "the client left".into());
            drop(self.close());
        }
    }
}

/// A text as the daemon takes it: without control characters, not too long, cut between characters.
fn sanitize(text: &str, max_bytes: usize) -> String {
    let mut sanitized: String = text.chars().filter(|c| !c.is_control()).collect();
    let end =
        (0..=max_bytes.min(sanitized.len())).rev().find(|&at| sanitized.is_char_boundary(at)).unwrap_or(0);
    sanitized.truncate(end);
    sanitized
}

/// How often weights change. The server's own steps are some 10 to 50 ms.
const UPDATE_INTERVAL: Duration = Duration::from_millis(100);

/// A stream that is weighed.
pub struct WeightedStream {
    /// Tokens since the last tick.
    tokens: AtomicU64,
    weight: AtomicU64,
    span: Mutex<RequestSpan>,
}

impl WeightedStream {
    /// The span.
    pub fn span(&self) -> MutexGuard<'_, RequestSpan> {
        self.span.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many tokens came.
    pub fn add_tokens(&self, tokens: u64) {
        self.tokens.fetch_add(tokens, Ordering::Relaxed);
    }

    fn update_weight(&self) {
        let weight = self.tokens.swap(0, Ordering::Relaxed).max(1);
        if self.weight.swap(weight, Ordering::Relaxed) != weight {
            self.span().set_weight(weight as f64);
        }
    }
}

/// The streams that run.
#[derive(Clone, Default)]
pub struct TokenWeights(Arc<Mutex<Vec<Weak<WeightedStream>>>>);

impl TokenWeights {
    /// Registers a span until it is dropped; its weight is 1 at first.
    pub fn register(&self, span: RequestSpan, is_weighted: bool) -> Arc<WeightedStream> {
        let (tokens, weight) = (AtomicU64::new(0), AtomicU64::new(1));
        let stream = Arc::new(WeightedStream { tokens, weight, span: Mutex::new(span) });
        if is_weighted {
            self.lock().push(Arc::downgrade(&stream));
        }
        stream
    }

    /// Weighs for ever.
    pub async fn run(self) {
        let mut ticks = tokio::time::interval(UPDATE_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.lock().retain(|stream| stream.upgrade().is_some_and(|stream| !stream.span().has_ended()));
            let streams: Vec<_> = self.lock().iter().filter_map(Weak::upgrade).collect();
            streams.iter().for_each(|stream| stream.update_weight());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<WeightedStream>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sanitize_removes_control_characters_and_truncates_at_a_character() {
        assert_eq!(sanitize("a\u{1b}[2J\nb", 256), "a[2Jb");
        assert_eq!(sanitize("熱熱", 5), "熱");
        assert_eq!(sanitize("", 5), "");
    }
}
