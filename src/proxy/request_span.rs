//! One inference's span: opened when the request arrives, closed whatever happens.
//!
//! Owns the span from arrival to end. Invariant: it is ended exactly once; one that is dropped (the client left, the
//! proxy stops) is closed at that instant with the energy it used, because that was used all the same.

use std::collections::BTreeMap;

use super::annotation::EnergyAnnotation;
use super::response_metadata::ResponseMetadata;
use super::span_client::{PendingClose, SpanClient, SpanHandle, UnmeasuredReason};
use crate::clock::monotonic_ns;
use crate::protocol::{CloseSpan, OpenSpan};

/// Longest value of an attribute that the daemon takes, and longest name of a span, in bytes.
const LONGEST: (usize, usize) = (1024, 256);

/// An inference's span.
pub struct RequestSpan {
    handle: Result<SpanHandle, UnmeasuredReason>,
    /// Its name in the protocol; also where there is no span of that name.
    pub id: String,
    attributes: BTreeMap<String, String>,
    has_phases: bool,
    ended: bool,
}

/// How to wait for the figures of a span that has ended.
pub enum PendingAnnotation {
    /// The account may come.
    Pending(String, PendingClose),
    /// There will be none.
    Unmeasured(UnmeasuredReason),
}

impl PendingAnnotation {
    /// The figures, after a bounded wait.
    pub async fn wait(self, said: ResponseMetadata) -> EnergyAnnotation {
        match self {
            PendingAnnotation::Pending(span, pending_close) => {
                EnergyAnnotation::from_outcome(&span, pending_close.wait().await, &said)
            }
            PendingAnnotation::Unmeasured(why) => EnergyAnnotation::unmeasured(why),
        }
    }
}

impl RequestSpan {
    /// Opens a span that begins now. With `phases` its decode will be marked.
    pub fn open(
        lane: &SpanClient,
        id: String,
        name: &str,
        notes: BTreeMap<String, String>,
        phases: bool,
    ) -> Self {
        let at_ns = monotonic_now_ns();
        let attributes = notes.into_iter().map(|(key, value)| (key, sanitize(&value, LONGEST.0))).collect();
        let opening = OpenSpan {
            name: Some(sanitize(name, LONGEST.1)),
            attributes: Some(attributes),
            at_ns: Some(at_ns),
            ..OpenSpan::default()
        };
        let handle = lane.open_span(id.clone(), opening);
        if handle.is_err() {
            lane.state.counters.unmeasured.increment();
        }
        RequestSpan { handle, id, attributes: BTreeMap::new(), has_phases: phases, ended: false }
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

    /// Notes something that is sent with the close.
    pub fn set_attribute(&mut self, key: &str, value: impl Into<String>) {
        self.attributes.insert(key.to_owned(), sanitize(&value.into(), LONGEST.0));
    }

    /// Notes what the reply said of itself.
    pub fn set_response_attributes(&mut self, said: &ResponseMetadata) {
        if let Some(model) = &said.model {
            self.set_attribute("gen_ai.response.model", model.clone());
        }
        if let Some(tokens) = said.input_tokens {
            self.set_attribute("gen_ai.usage.input_tokens", tokens.to_string());
        }
        match said.output_tokens {
            Some(tokens) => self.set_attribute("gen_ai.usage.output_tokens", tokens.to_string()),
            // A server that was not asked for usage gives none; its chunks are no tokens, and say so.
            None if said.content_chunks > 0 => {
                self.set_attribute("wattspan.content_chunks", said.content_chunks.to_string());
            }
            None => {}
        }
        if said.error {
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
                let attributes = Some(std::mem::take(&mut self.attributes)).filter(|notes| !notes.is_empty());
                let span = handle.id().to_owned();
                let closing =
                    CloseSpan { attributes, at_ns: Some(monotonic_now_ns()), ..CloseSpan::default() };
                PendingAnnotation::Pending(span, handle.close(closing))
            }
            Err(why) => PendingAnnotation::Unmeasured(why),
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

fn monotonic_now_ns() -> i64 {
    i64::try_from(monotonic_ns()).unwrap_or(i64::MAX)
}

/// A text as the daemon takes it: without control characters, not too long, cut between characters.
fn sanitize(text: &str, most: usize) -> String {
    let mut plain: String = text.chars().filter(|c| !c.is_control()).collect();
    let end = (0..=most.min(plain.len())).rev().find(|&at| plain.is_char_boundary(at)).unwrap_or(0);
    plain.truncate(end);
    plain
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
