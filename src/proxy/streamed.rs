//! A reply on its way to the client, read along as it flows, with the energy behind it.
//!
//! Owns the end: the span closes when the server's last byte came, and only then is the account waited for, a bounded
//! while, and only where there is a place to tell it. Every byte the server sent is passed on in order; what is added is
//! added behind them (or, with `--annotate usage`, into one line). Never holds more than one frame otherwise, so a
//! client that does not read is not read for.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::dialect::Dialect;
use super::figures::{ENERGY, Figures};
use super::insertion::{Held, Insertion};
use super::reading::Said;
use super::weigh::Weighed;
use crate::http::Broken;

/// Where the energy can be told.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tail {
    /// As a comment behind the last event.
    pub comment: bool,
    /// As a trailer.
    pub trailer: bool,
    /// In the last chunk that tells of usage.
    pub usage: bool,
}

impl Tail {
    /// Names the trailer in the head: over HTTP/1.1 one that is not named there is not sent.
    pub fn announce(self, headers: &mut HeaderMap) {
        if self.trailer {
            headers.append(header::TRAILER, HeaderValue::from(ENERGY));
        }
    }
}

enum State {
    Flowing,
    Settling(Pin<Box<dyn Future<Output = Figures> + Send>>),
    /// Everything but the trailers was handed on.
    Last(Option<HeaderMap>),
    /// The server broke off; everything that came before was handed on, and has been sent where `sent`.
    Broken {
        error: Option<hyper::Error>,
        sent: bool,
    },
    Ended,
}

/// The reply's body.
pub struct Streamed {
    inner: Incoming,
    weighed: Arc<Weighed>,
    dialect: Dialect,
    said: Said,
    tail: Tail,
    insertion: Insertion,
    held: Option<Held>,
    figures: Option<Figures>,
    out: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    flown: bool,
    decoding: bool,
    state: State,
}

impl Streamed {
    /// `begun` comes first and was read already; then what `inner` gives.
    pub fn new(
        inner: Incoming,
        begun: VecDeque<Bytes>,
        weighed: Arc<Weighed>,
        dialect: Dialect,
        tail: Tail,
    ) -> Self {
        Streamed {
            inner,
            weighed,
            dialect,
            said: Said::default(),
            tail,
            insertion: Insertion::default(),
            held: None,
            figures: None,
            out: begun,
            trailers: None,
            flown: false,
            decoding: false,
            state: State::Flowing,
        }
    }

    fn read(&mut self, piece: &[u8]) {
        let tokens = self.dialect.read(piece, &mut self.said);
        if tokens > 0 {
            self.weighed.count(tokens);
            if !std::mem::replace(&mut self.decoding, true) {
                self.weighed.span().decode();
            }
        }
    }

    /// The server is done: the span ends, and its figures are awaited where they can be told.
    fn end(&mut self) {
        self.flown = true;
        self.insertion.flush(&mut self.out);
        self.dialect.finish(&mut self.said);
        self.state = self.settle().map_or(State::Flowing, State::Settling);
    }

    fn settle(&mut self) -> Option<Pin<Box<dyn Future<Output = Figures> + Send>>> {
        let mut span = self.weighed.span();
        span.note_said(&self.said);
        let awaited = span.close()?;
        let Tail { comment, trailer, usage } = self.tail;
        let told = comment || trailer || (usage && self.held.is_some());
        let said = self.said.clone();
        told.then(|| Box::pin(awaited.figures(said)) as Pin<Box<_>>)
    }

    /// What follows the server's last byte.
    fn wind_up(&mut self) {
        let comment = match &self.dialect {
            Dialect::Events(events) => self.tail.comment && events.between_events(),
            _ => false,
        };
        let mut trailers = self.trailers.take();
        if let Some(figures) = &self.figures {
            if comment {
                self.out.push_back(figures.comment().into());
            }
            if self.tail.trailer {
                trailers.get_or_insert_default().insert(ENERGY, figures.header());
            }
        }
        self.state = State::Last(trailers);
    }

    fn take(&mut self, piece: Bytes) {
        self.read(&piece);
        if !self.tail.usage {
            self.out.push_back(piece);
        } else if let Some(held) = self.insertion.feed(&piece, &mut self.out) {
            self.held = Some(held);
            match self.settle() {
                Some(figures) => self.state = State::Settling(figures),
                None => self.release(),
            }
        }
    }

    fn release(&mut self) {
        if let Some(held) = self.held.take() {
            let energy = self.figures.as_ref().map_or_else(|| "null".into(), Figures::json);
            self.out.push_back(held.with(&energy));
            self.insertion.flush(&mut self.out);
        }
    }

    fn broke(&mut self, error: hyper::Error) {
        self.insertion.flush(&mut self.out);
        self.state = State::Broken { error: Some(error), sent: false };
        let mut span = self.weighed.span();
        span.note_said(&self.said);
        span.note("error.type", "the server broke off");
        drop(span.close());
    }
}

impl Body for Streamed {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = &mut *self;
        loop {
            if let Some(piece) = this.out.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            match &mut this.state {
                State::Settling(figures) => {
                    this.figures = Some(ready!(figures.as_mut().poll(cx)));
                    this.state = State::Flowing;
                    this.release();
                }
                State::Flowing if this.flown => this.wind_up(),
                State::Flowing => match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(piece) => {
                            this.take(piece);
                            // A body of known length is not asked again after its last byte.
                            if this.inner.is_end_stream() && matches!(this.state, State::Flowing) {
                                this.end();
                            }
                        }
                        Err(frame) => {
                            this.trailers = frame.into_trailers().ok();
                            this.end();
                        }
                    },
                    Some(Err(error)) => this.broke(error),
                    None => this.end(),
                },
                State::Last(trailers) => {
                    let trailers = trailers.take();
                    this.state = State::Ended;
                    if let Some(trailers) = trailers {
                        return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                    }
                }
                // hyper throws away what it has not sent yet when it hears of an error; it sends while it waits.
                State::Broken { sent: sent @ false, .. } => {
                    *sent = true;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                State::Broken { error, .. } => {
                    let error = error.take();
                    this.state = State::Ended;
                    return Poll::Ready(error.map(|error| Err(error.into())));
                }
                State::Ended => return Poll::Ready(None),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.out.is_empty() && matches!(self.state, State::Ended)
    }

    fn size_hint(&self) -> SizeHint {
        let adds = self.tail.comment || self.tail.usage || !self.out.is_empty();
        if adds { SizeHint::default() } else { self.inner.size_hint() }
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        let mut span = self.weighed.span();
        if !span.is_over() {
            self.dialect.finish(&mut self.said);
            span.note_said(&self.said);
            // Many clients leave at "[DONE]" without reading to the end: they had all there was.
            if !self.said.done && !self.inner.is_end_stream() {
                span.note("error.type", "the client left");
            }
            drop(span.close());
        }
    }
}
