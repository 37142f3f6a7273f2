//! One inference's span: opened when the request arrives, closed whatever happens.
//!
//! Owns the span from arrival to end. Invariant: it is ended exactly once; one that is dropped (the client left, the
//! proxy stops) is closed at that instant with the energy it used, because that was used all the same.

use std::collections::BTreeMap;

use super::figures::Figures;
use super::lane::{Closing, Lane, Open, Unmeasured};
use super::reading::Said;
use crate::clock::monotonic_ns;
use crate::protocol::{CloseSpan, OpenSpan};

/// Longest value of an attribute that the daemon takes, and longest name of a span, in bytes.
const LONGEST: (usize, usize) = (1024, 256);

/// An inference's span.
pub struct Measured {
    open: Result<Open, Unmeasured>,
    /// Its name in the protocol; also where there is no span of that name.
    pub id: String,
    notes: BTreeMap<String, String>,
    phases: bool,
    over: bool,
}

/// How to wait for the figures of a span that has ended.
pub enum Awaited {
    /// The account may come.
    Closing(String, Closing),
    /// There will be none.
    Never(Unmeasured),
}

impl Awaited {
    /// The figures, after a bounded wait.
    pub async fn figures(self, said: Said) -> Figures {
        match self {
            Awaited::Closing(span, closing) => Figures::of(&span, closing.soon().await, &said),
            Awaited::Never(why) => Figures::unmeasured(why),
        }
    }
}

impl Measured {
    /// Opens a span that begins now. With `phases` its decode will be marked.
    pub fn begin(lane: &Lane, id: String, name: &str, notes: BTreeMap<String, String>, phases: bool) -> Self {
        let at_ns = now();
        let attributes = notes.into_iter().map(|(key, value)| (key, plain(&value, LONGEST.0))).collect();
        let opening = OpenSpan {
            name: Some(plain(name, LONGEST.1)),
            attributes: Some(attributes),
            at_ns: Some(at_ns),
            ..OpenSpan::default()
        };
        let open = lane.open(id.clone(), opening);
        if open.is_err() {
            lane.shared.tally.unmeasured.up();
        }
        Measured { open, id, notes: BTreeMap::new(), phases, over: false }
    }

    /// The first token of the answer is here.
    pub fn decode(&mut self) {
        if let (Ok(open), true, false) = (&self.open, self.phases, self.over) {
            open.mark("decode", now());
        }
    }

    /// It weighs so much from now on.
    pub fn weigh(&self, weight: f64) {
        if let (Ok(open), false) = (&self.open, self.over) {
            open.weigh(weight);
        }
    }

    /// Notes something that is sent with the close.
    pub fn note(&mut self, key: &str, value: impl Into<String>) {
        self.notes.insert(key.to_owned(), plain(&value.into(), LONGEST.0));
    }

    /// Notes what the reply said of itself.
    pub fn note_said(&mut self, said: &Said) {
        if let Some(model) = &said.model {
            self.note("gen_ai.response.model", model.clone());
        }
        if let Some(tokens) = said.input_tokens {
            self.note("gen_ai.usage.input_tokens", tokens.to_string());
        }
        match said.output_tokens {
            Some(tokens) => self.note("gen_ai.usage.output_tokens", tokens.to_string()),
            // A server that was not asked for usage gives none; its chunks are no tokens, and say so.
            None if said.content_chunks > 0 => {
                self.note("wattspan.content_chunks", said.content_chunks.to_string());
            }
            None => {}
        }
        if said.error {
            self.note("error.type", "told in the stream");
        }
    }

    /// Ends it now; `None` where it has ended already.
    pub fn close(&mut self) -> Option<Awaited> {
        if std::mem::replace(&mut self.over, true) {
            return None;
        }
        Some(match std::mem::replace(&mut self.open, Err(Unmeasured::Away)) {
            Ok(open) => {
                let attributes = Some(std::mem::take(&mut self.notes)).filter(|notes| !notes.is_empty());
                let span = open.span().to_owned();
                let closing = CloseSpan { attributes, at_ns: Some(now()), ..CloseSpan::default() };
                Awaited::Closing(span, open.close(closing))
            }
            Err(why) => Awaited::Never(why),
        })
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Forgets it: the request cannot have reached the server.
    pub fn cancel(&mut self) {
        self.over = true;
        if let Ok(open) = std::mem::replace(&mut self.open, Err(Unmeasured::Away)) {
            open.cancel();
        }
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        if !self.over {
            self.notes.entry("error.type".into()).or_insert_with(|| "the client left".into());
            drop(self.close());
        }
    }
}

fn now() -> i64 {
    i64::try_from(monotonic_ns()).unwrap_or(i64::MAX)
}

/// A text as the daemon takes it: without control characters, not too long, cut between characters.
fn plain(text: &str, most: usize) -> String {
    let mut plain: String = text.chars().filter(|c| !c.is_control()).collect();
    let end = (0..=most.min(plain.len())).rev().find(|&at| plain.is_char_boundary(at)).unwrap_or(0);
    plain.truncate(end);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters_and_has_no_control_characters() {
        assert_eq!(plain("a\u{1b}[2J\nb", 256), "a[2Jb");
        assert_eq!(plain("熱熱", 5), "熱");
        assert_eq!(plain("", 5), "");
    }
}
