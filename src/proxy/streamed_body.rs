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

use super::annotation::{ENERGY_HEADER, EnergyAnnotation};
use super::response_metadata::ResponseMetadata;
use super::response_reader::ResponseReader;
use super::token_weights::WeightedStream;
use super::usage_inserter::{HeldLine, UsageInserter};
use crate::http::BodyError;

/// Where the energy can be added to a reply.
#[derive(Debug, Clone, Copy, Default)]
pub struct AnnotationPlacement {
    /// As a comment after the last event.
    pub comment: bool,
    /// As a trailer.
    pub trailer: bool,
    /// In the last chunk that states usage.
    pub usage: bool,
}

impl AnnotationPlacement {
    /// Names the trailer in the head: over HTTP/1.1 one that is not named there is not sent.
    pub fn announce_trailer(self, headers: &mut HeaderMap) {
        if self.trailer {
            headers.append(header::TRAILER, HeaderValue::from(ENERGY_HEADER));
        }
    }
}

enum StreamState {
    Streaming,
    AwaitingAnnotation(Pin<Box<dyn Future<Output = EnergyAnnotation> + Send>>),
    /// Everything but the trailers was handed on.
    SendingTrailers(Option<HeaderMap>),
    /// The server broke off; everything that came before was handed on, and has been sent where `sent`.
    UpstreamFailed {
        error: Option<hyper::Error>,
        sent: bool,
    },
    Ended,
}

/// The reply's body.
pub struct StreamedBody {
    inner: Incoming,
    stream: Arc<WeightedStream>,
    reader: ResponseReader,
    metadata: ResponseMetadata,
    placement: AnnotationPlacement,
    inserter: UsageInserter,
    held_line: Option<HeldLine>,
    annotation: Option<EnergyAnnotation>,
    chunks: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    upstream_ended: bool,
    is_decode_marked: bool,
    state: StreamState,
}

impl StreamedBody {
    /// `buffered` comes first and was read already; then what `inner` gives.
    pub fn new(
        inner: Incoming,
        buffered: VecDeque<Bytes>,
        stream: Arc<WeightedStream>,
        reader: ResponseReader,
        placement: AnnotationPlacement,
    ) -> Self {
        StreamedBody {
            inner,
            stream,
            reader,
            metadata: ResponseMetadata::default(),
            placement,
            inserter: UsageInserter::default(),
            held_line: None,
            annotation: None,
            chunks: buffered,
            trailers: None,
            upstream_ended: false,
            is_decode_marked: false,
            state: StreamState::Streaming,
        }
    }

    fn read_chunk(&mut self, chunk: &[u8]) {
        let tokens = self.reader.read_chunk(chunk, &mut self.metadata);
        if tokens > 0 {
            self.stream.add_tokens(tokens);
            if !std::mem::replace(&mut self.is_decode_marked, true) {
                self.stream.span().mark_decode();
            }
        }
    }

    /// The server is done: the span ends, and its annotation is awaited where it can be added.
    fn handle_upstream_end(&mut self) {
        self.upstream_ended = true;
        self.inserter.flush(&mut self.chunks);
        self.reader.finish(&mut self.metadata);
        self.state = self.close_span().map_or(StreamState::Streaming, StreamState::AwaitingAnnotation);
    }

    fn close_span(&mut self) -> Option<Pin<Box<dyn Future<Output = EnergyAnnotation> + Send>>> {
        let mut span = self.stream.span();
        span.set_response_attributes(&self.metadata);
        let pending = span.close()?;
        let AnnotationPlacement { comment, trailer, usage } = self.placement;
        let is_needed = comment || trailer || (usage && self.held_line.is_some());
        let metadata = self.metadata.clone();
        is_needed.then(|| Box::pin(pending.wait(metadata)) as Pin<Box<_>>)
    }

    /// What follows the server's last byte.
    fn append_annotation(&mut self) {
        let comment = match &self.reader {
            ResponseReader::Sse(decoder) => self.placement.comment && decoder.is_between_events(),
            _ => false,
        };
        let mut trailers = self.trailers.take();
        if let Some(annotation) = &self.annotation {
            if comment {
                self.chunks.push_back(annotation.sse_comment().into());
            }
            if self.placement.trailer {
                trailers.get_or_insert_default().insert(ENERGY_HEADER, annotation.header_value());
            }
        }
        self.state = StreamState::SendingTrailers(trailers);
    }

    fn handle_chunk(&mut self, chunk: Bytes) {
        self.read_chunk(&chunk);
        if !self.placement.usage {
            self.chunks.push_back(chunk);
        } else if let Some(held_line) = self.inserter.feed(&chunk, &mut self.chunks) {
            self.held_line = Some(held_line);
            match self.close_span() {
                Some(annotation) => self.state = StreamState::AwaitingAnnotation(annotation),
                None => self.release_held_line(),
            }
        }
    }

    fn release_held_line(&mut self) {
        if let Some(held_line) = self.held_line.take() {
            let energy = self.annotation.as_ref().map_or_else(|| "null".into(), EnergyAnnotation::to_json);
            self.chunks.push_back(held_line.insert(&energy));
            self.inserter.flush(&mut self.chunks);
        }
    }

    fn handle_upstream_error(&mut self, error: hyper::Error) {
        self.inserter.flush(&mut self.chunks);
        self.state = StreamState::UpstreamFailed { error: Some(error), sent: false };
        let mut span = self.stream.span();
        span.set_response_attributes(&self.metadata);
        span.set_attribute("error.type", "the server broke off");
        drop(span.close());
    }
}

impl Body for StreamedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        loop {
            if let Some(chunk) = this.chunks.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(chunk))));
            }
            match &mut this.state {
                StreamState::AwaitingAnnotation(annotation) => {
                    this.annotation = Some(ready!(annotation.as_mut().poll(cx)));
                    this.state = StreamState::Streaming;
                    this.release_held_line();
                }
                StreamState::Streaming if this.upstream_ended => this.append_annotation(),
                StreamState::Streaming => match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(chunk) => {
                            this.handle_chunk(chunk);
                            // A body of known length is not asked again after its last byte.
                            if this.inner.is_end_stream() && matches!(this.state, StreamState::Streaming) {
                                this.handle_upstream_end();
                            }
                        }
                        Err(frame) => {
                            this.trailers = frame.into_trailers().ok();
                            this.handle_upstream_end();
                        }
                    },
                    Some(Err(error)) => this.handle_upstream_error(error),
                    None => this.handle_upstream_end(),
                },
                StreamState::SendingTrailers(trailers) => {
                    let trailers = trailers.take();
                    this.state = StreamState::Ended;
                    if let Some(trailers) = trailers {
                        return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                    }
                }
                // hyper throws away what it has not sent yet when it hears of an error; it sends while it waits.
                StreamState::UpstreamFailed { sent: sent @ false, .. } => {
                    *sent = true;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                StreamState::UpstreamFailed { error, .. } => {
                    let error = error.take();
                    this.state = StreamState::Ended;
                    return Poll::Ready(error.map(|error| Err(error.into())));
                }
                StreamState::Ended => return Poll::Ready(None),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.chunks.is_empty() && matches!(self.state, StreamState::Ended)
    }

    fn size_hint(&self) -> SizeHint {
        let adds_bytes = self.placement.comment || self.placement.usage || !self.chunks.is_empty();
        if adds_bytes { SizeHint::default() } else { self.inner.size_hint() }
    }
}

impl Drop for StreamedBody {
    fn drop(&mut self) {
        let mut span = self.stream.span();
        if !span.has_ended() {
            self.reader.finish(&mut self.metadata);
            span.set_response_attributes(&self.metadata);
            // Many clients leave at "[DONE]" without reading to the end: they had all there was.
            if !self.metadata.done && !self.inner.is_end_stream() {
                span.set_attribute("error.type", "the client left");
            }
            drop(span.close());
        }
    }
}
