//! The span of one inference request, and its weight by tokens.
//!
//! Invariant: a span that was opened ends exactly once. One that is dropped (the client closed the connection, the
//! proxy stops) is closed at that instant, since the energy was used.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use wattspan_client::clock::monotonic_now_ns;
use wattspan_client::protocol::{CloseSpan, OpenSpan};

use super::annotation::EnergyAnnotation;
use super::response_reader::ResponseMetadata;
use super::span_client::{PendingClose, SpanClient, SpanHandle, UnmeasuredReason};

/// The longest attribute value that the daemon accepts.
const MAX_ATTRIBUTE_BYTES: usize = 1024;

/// The longest span name that the daemon accepts.
const MAX_NAME_BYTES: usize = 256;

pub struct RequestSpan {
    handle: Result<SpanHandle, UnmeasuredReason>,
    /// The span id in the protocol. A request without a span has one too.
    pub id: String,
    attributes: BTreeMap<String, String>,
    has_phases: bool,
    ended: bool,
}

/// The annotation of a span that has ended.
pub enum PendingAnnotation {
    /// The account of this span is awaited.
    Pending(String, PendingClose),
    /// The request had no span.
    Unmeasured(UnmeasuredReason),
}

impl PendingAnnotation {
    /// Waits a bounded time for the account.
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
    /// Opens a span that begins now. With `has_phases`, [`RequestSpan::mark_decode`] marks a phase. `attributes` is called
    /// only if the daemon can be asked.
    pub fn open(
        client: &SpanClient,
        id: String,
        name: &str,
        attributes: impl FnOnce() -> BTreeMap<String, String>,
        has_phases: bool,
    ) -> Self {
        let at_ns = monotonic_now_ns();
        let request = || {
            let mut attributes = attributes();
            for value in attributes.values_mut() {
                *value = sanitize(std::mem::take(value), MAX_ATTRIBUTE_BYTES);
            }
            OpenSpan {
                name: Some(sanitize(name, MAX_NAME_BYTES)),
                attributes: Some(attributes),
                at_ns: Some(at_ns),
                ..OpenSpan::default()
            }
        };
        let handle = client.open_span(id.clone(), request);
        if handle.is_err() {
            client.state.counters.unmeasured.increment();
        }
        RequestSpan { handle, id, attributes: BTreeMap::new(), has_phases, ended: false }
    }

    /// Begins the decode phase: the first token of content arrived.
    pub fn mark_decode(&mut self) {
        if let (Ok(handle), true, false) = (&self.handle, self.has_phases, self.ended) {
            handle.mark_phase("decode", monotonic_now_ns());
        }
    }

    pub fn set_weight(&self, weight: f64) {
        if let (Ok(handle), false) = (&self.handle, self.ended) {
            handle.set_weight(weight);
        }
    }

    /// Sets an attribute, which the close sends.
    pub fn set_attribute(&mut self, key: &str, value: impl Into<String>) {
        self.attributes.insert(key.to_owned(), sanitize(value, MAX_ATTRIBUTE_BYTES));
    }

    /// Sets the attributes that the response states.
    pub fn set_response_attributes(&mut self, metadata: &ResponseMetadata) {
        if let Some(model) = &metadata.model {
            self.set_attribute("gen_ai.response.model", model.clone());
        }
        if let Some(tokens) = metadata.input_tokens {
            self.set_attribute("gen_ai.usage.input_tokens", tokens.to_string());
        }
        match metadata.output_tokens {
            Some(tokens) => self.set_attribute("gen_ai.usage.output_tokens", tokens.to_string()),
            // Without usage in the response only the chunks are counted; a chunk can hold several tokens.
            None if metadata.content_chunks > 0 => {
                self.set_attribute("wattspan.content_chunks", metadata.content_chunks.to_string());
            }
            None => {}
        }
        if let Some(error) = metadata.error {
            self.set_attribute("error.type", error);
        }
    }

    /// Closes the span now; `None` where it has ended already.
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

    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Cancels the span: the request cannot have reached the server.
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

/// `text` without control characters and cut to `max_bytes` at a character boundary, as the daemon requires.
fn sanitize(text: impl Into<String>, max_bytes: usize) -> String {
    let text = text.into();
    if text.len() <= max_bytes && !text.contains(char::is_control) {
        return text;
    }
    let mut sanitized: String = text.chars().filter(|c| !c.is_control()).collect();
    let end =
        (0..=max_bytes.min(sanitized.len())).rev().find(|&at| sanitized.is_char_boundary(at)).unwrap_or(0);
    sanitized.truncate(end);
    sanitized
}

/// How often weights change. A server's batch step takes some 10 to 50 ms.
const UPDATE_INTERVAL: Duration = Duration::from_millis(100);

/// The span of a response, with the tokens that arrived. A token is one chunk with content, which is what servers send
/// by default; the count is used as a weight only.
pub struct WeightedStream {
    /// Tokens since the last update of the weight.
    tokens: AtomicU64,
    weight: AtomicU64,
    span: Mutex<RequestSpan>,
}

impl WeightedStream {
    pub fn span(&self) -> MutexGuard<'_, RequestSpan> {
        self.span.lock().unwrap_or_else(PoisonError::into_inner)
    }

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

/// The open streams whose weights follow their tokens. At each tick a stream weighs as much as the tokens that arrived
/// since the last tick, at least 1 (in prefill, or while it waits). Only changes are sent.
#[derive(Clone, Default)]
pub struct TokenWeights(Arc<Mutex<Vec<Weak<WeightedStream>>>>);

impl TokenWeights {
    /// Wraps the span; with `is_weighted` its weight is updated until it ends. The first weight is 1.
    pub fn register(&self, span: RequestSpan, is_weighted: bool) -> Arc<WeightedStream> {
        let (tokens, weight) = (AtomicU64::new(0), AtomicU64::new(1));
        let stream = Arc::new(WeightedStream { tokens, weight, span: Mutex::new(span) });
        if is_weighted {
            self.lock().push(Arc::downgrade(&stream));
        }
        stream
    }

    /// Updates the weights; never returns.
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
