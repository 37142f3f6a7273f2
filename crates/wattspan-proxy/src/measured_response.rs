//! The response to an inference request, with its energy added.
//!
//! A streamed response is forwarded as it arrives, and the energy follows it. A response that is not streamed is
//! buffered, within [`BUFFER_TIMEOUT`] and [`MAX_BUFFERED_BYTES`], so that the energy fits into its head. Invariants:
//! every byte of the server is forwarded in order; the span closes when the last byte of the server arrives; the wait
//! for the account is bounded, and takes place only where the account can still be added.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};
use wattspan_http::reply::{DeclaredFormat, ReplyReader};
use wattspan_http::{BodyError, BoxBody, BufferedBody, hop_by_hop};

use super::annotation::{ENERGY_HEADER, EnergyAnnotation, SPAN_HEADER};
use super::context::{AnnotationMode, ClientContext};
use super::reply_progress::ObservedReply;
use super::request_span::{RequestSpan, WeightedStream};
use super::response_reader::ResponseReader;
use super::upstream_request::ClientCapabilities;
use super::usage_inserter::{HeldLine, InsertionPoint, UsageInserter};

/// How long the head waits for the end of the body. A server sends a response that is not streamed in one piece, so
/// that its end follows the head at once.
const BUFFER_TIMEOUT: Duration = Duration::from_millis(100);

/// The longest body that is buffered.
const MAX_BUFFERED_BYTES: u64 = 32 << 10;

/// Builds the response to the client and closes the span at the end of the body.
///
/// # Errors
/// The server closed the connection before the end of a buffered response, of which the client has received nothing.
pub async fn respond(
    client: &ClientContext,
    mut head: response::Parts,
    body: ObservedReply,
    span: RequestSpan,
    capabilities: &ClientCapabilities,
) -> Result<Response<BoxBody>, hyper::Error> {
    let proxy = &*client.proxy;
    hop_by_hop::strip(&mut head.headers);
    // The id reveals no energy, so every client gets it: the operator finds the account of a request by it.
    if proxy.annotation_mode != AnnotationMode::Off
        && let Ok(id) = HeaderValue::from_str(&span.id)
    {
        head.headers.insert(SPAN_HEADER, id);
    }
    let kind = ResponseKind::from_head(&head);
    let length = body.size_hint().exact();
    let placement = AnnotationPlacement::new(client.annotation_mode, &kind, length, capabilities);
    let ResponseKind { reader, is_streamed, .. } = kind;
    let stream = proxy.token_weights.register(span, proxy.weigh_by_tokens && is_streamed);
    let is_annotated = client.annotation_mode != AnnotationMode::Off;
    if is_annotated && !is_streamed && length.is_none_or(|length| length <= MAX_BUFFERED_BYTES) {
        return buffered_response(head, body, stream, reader, placement).await;
    }
    placement.announce_trailer(&mut head.headers);
    let placement = AnnotationPlacement { usage: placement.usage && is_streamed, ..placement };
    let streamed = StreamedBody::new(body, VecDeque::new(), stream, reader, placement);
    Ok(Response::from_parts(head, streamed.boxed_unsync()))
}

/// The format of a response, derived from its head.
struct ResponseKind {
    reader: ResponseReader,
    is_streamed: bool,
    /// The body can be read and extended, since it has no content encoding.
    is_uncompressed: bool,
}

impl ResponseKind {
    fn from_head(head: &response::Parts) -> Self {
        let text = |name| head.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let is_uncompressed = text(header::CONTENT_ENCODING).is_none_or(|encoding| encoding == "identity");
        let declared = DeclaredFormat::from_content_type(text(header::CONTENT_TYPE).unwrap_or_default());
        let is_streamed = declared.is_stream();
        let reader = is_uncompressed.then(|| ReplyReader::without_text(declared));
        let reader = ResponseReader::new(reader, is_streamed);
        ResponseKind { reader, is_streamed, is_uncompressed }
    }
}

/// The places in a response where its energy is added.
#[derive(Debug, Clone, Copy, Default)]
struct AnnotationPlacement {
    /// As a comment after the last event.
    comment: bool,
    trailer: bool,
    /// In the last chunk that states usage.
    usage: bool,
}

impl AnnotationPlacement {
    fn new(
        mode: AnnotationMode,
        kind: &ResponseKind,
        length: Option<u64>,
        capabilities: &ClientCapabilities,
    ) -> Self {
        let is_annotated = mode != AnnotationMode::Off;
        let &ResponseKind { is_streamed, is_uncompressed, .. } = kind;
        AnnotationPlacement {
            comment: is_annotated && is_uncompressed && is_streamed && length.is_none(),
            trailer: is_annotated && capabilities.accepts_trailers(length.is_some()),
            usage: mode == AnnotationMode::Usage && is_uncompressed && (length.is_none() || !is_streamed),
        }
    }

    /// Names the trailer in the head: hyper sends no trailer over HTTP/1.1 that the head does not name.
    fn announce_trailer(self, headers: &mut HeaderMap) {
        if self.trailer {
            headers.append(header::TRAILER, HeaderValue::from(ENERGY_HEADER));
        }
    }
}

enum BufferOutcome {
    Complete(Option<HeaderMap>),
    /// The body is too long or too slow; the rest is still to be received.
    Partial,
    UpstreamFailed(hyper::Error),
}

/// The response with its energy in the head, or a streamed one where the body exceeds the limits of buffering.
async fn buffered_response(
    mut head: response::Parts,
    mut body: ObservedReply,
    stream: Arc<WeightedStream>,
    mut reader: ResponseReader,
    placement: AnnotationPlacement,
) -> Result<Response<BoxBody>, hyper::Error> {
    let mut chunks = VecDeque::new();
    let trailers = match buffer_body(&mut body, &mut chunks, &mut reader).await {
        BufferOutcome::Complete(trailers) => trailers,
        BufferOutcome::Partial => {
            let placement = AnnotationPlacement { comment: false, usage: false, ..placement };
            placement.announce_trailer(&mut head.headers);
            let streamed = StreamedBody::new(body, chunks, stream, reader, placement);
            return Ok(Response::from_parts(head, streamed.boxed_unsync()));
        }
        BufferOutcome::UpstreamFailed(error) => {
            let mut span = stream.span();
            span.set_attribute("error.type", "the server broke off");
            drop(span.close());
            return Err(error);
        }
    };
    reader.finish();
    let pending = {
        let mut span = stream.span();
        span.set_response_attributes(reader.metadata());
        span.close()
    };
    let has_known_length = head.headers.contains_key(header::CONTENT_LENGTH);
    if let Some(pending) = pending {
        let annotation = pending.wait(reader.metadata().clone()).await;
        head.headers.insert(ENERGY_HEADER, annotation.header_value());
        if placement.usage && reader.is_json() {
            let bytes = chunks.drain(..).flatten().collect();
            chunks.push_back(insert_energy(&mut head.headers, bytes, &annotation).into());
        }
    }
    let body = BufferedBody { chunks, trailers, has_known_length }.map_err(|never| match never {});
    Ok(Response::from_parts(head, body.boxed_unsync()))
}

async fn buffer_body(
    body: &mut ObservedReply,
    chunks: &mut VecDeque<Bytes>,
    reader: &mut ResponseReader,
) -> BufferOutcome {
    let deadline = Instant::now() + BUFFER_TIMEOUT;
    let mut length = 0;
    loop {
        match timeout_at(deadline, body.frame()).await {
            Err(_) => return BufferOutcome::Partial,
            Ok(None) => return BufferOutcome::Complete(None),
            Ok(Some(Err(error))) => return BufferOutcome::UpstreamFailed(error),
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(chunk) => {
                    reader.read_chunk(&chunk);
                    length += chunk.len() as u64;
                    chunks.push_back(chunk);
                    if length > MAX_BUFFERED_BYTES {
                        return BufferOutcome::Partial;
                    }
                }
                Err(frame) => return BufferOutcome::Complete(frame.into_trailers().ok()),
            },
        }
    }
}

/// Adds `usage.energy` to the body and adapts the headers to it.
fn insert_energy(headers: &mut HeaderMap, bytes: Vec<u8>, annotation: &EnergyAnnotation) -> Vec<u8> {
    let has_token_counts = memchr::memmem::find(&bytes, b"\"eval_count\"").is_some();
    let Some(point) = InsertionPoint::find(&bytes, has_token_counts) else { return bytes };
    let bytes = point.insert(&bytes, &annotation.to_json());
    if headers.contains_key(header::CONTENT_LENGTH) {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    }
    // These digests are of the server's body, which differs from the one that is sent.
    for name in ["content-md5", "digest", "content-digest", "etag"] {
        headers.remove(name);
    }
    bytes
}

enum StreamState {
    Streaming,
    AwaitingAnnotation(Pin<Box<dyn Future<Output = EnergyAnnotation> + Send>>),
    /// Only the trailers remain to be sent.
    SendingTrailers(Option<HeaderMap>),
    /// The server closed the connection before the end; all that arrived before was given to hyper, which has had an
    /// opportunity to send it where `sent`.
    UpstreamFailed {
        error: Option<hyper::Error>,
        sent: bool,
    },
    Ended,
}

/// The body of a streamed response. It holds one frame at most, or one line with `--annotate usage`: a client that does
/// not read stops the reads from the server.
struct StreamedBody {
    inner: ObservedReply,
    stream: Arc<WeightedStream>,
    reader: ResponseReader,
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
    /// A body of the chunks `buffered`, which `reader` has read, and then those of `inner`.
    fn new(
        inner: ObservedReply,
        buffered: VecDeque<Bytes>,
        stream: Arc<WeightedStream>,
        reader: ResponseReader,
        placement: AnnotationPlacement,
    ) -> Self {
        StreamedBody {
            inner,
            stream,
            reader,
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

    /// Reads a frame from the server.
    fn poll_upstream(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(chunk) => {
                    self.handle_chunk(chunk);
                    // hyper does not poll a body of known length again after its last byte.
                    if self.inner.is_end_stream() && matches!(self.state, StreamState::Streaming) {
                        self.handle_upstream_end();
                    }
                }
                Err(frame) => {
                    self.trailers = frame.into_trailers().ok();
                    self.handle_upstream_end();
                }
            },
            Some(Err(error)) => self.handle_upstream_error(error),
            None => self.handle_upstream_end(),
        }
        Poll::Ready(())
    }

    fn handle_chunk(&mut self, chunk: Bytes) {
        self.read_chunk(&chunk);
        if !self.placement.usage {
            self.chunks.push_back(chunk);
        } else if let Some(held_line) = self.inserter.feed(&chunk, &mut self.chunks) {
            self.hold(held_line);
        }
    }

    /// Ends the span, and holds a line until its annotation arrives.
    fn hold(&mut self, held_line: HeldLine) {
        self.held_line = Some(held_line);
        match self.close_span() {
            Some(annotation) => self.state = StreamState::AwaitingAnnotation(annotation),
            None => self.release_held_line(),
        }
    }

    fn read_chunk(&mut self, chunk: &[u8]) {
        let tokens = self.reader.read_chunk(chunk);
        if tokens > 0 {
            self.stream.add_tokens(tokens);
            if !std::mem::replace(&mut self.is_decode_marked, true) {
                self.stream.span().mark_decode();
            }
        }
    }

    fn handle_upstream_end(&mut self) {
        self.upstream_ended = true;
        self.reader.finish();
        if let Some(held_line) = self.inserter.finish(&mut self.chunks) {
            return self.hold(held_line);
        }
        self.state = self.close_span().map_or(StreamState::Streaming, StreamState::AwaitingAnnotation);
    }

    fn handle_upstream_error(&mut self, error: hyper::Error) {
        self.inserter.flush(&mut self.chunks);
        self.state = StreamState::UpstreamFailed { error: Some(error), sent: false };
        let mut span = self.stream.span();
        span.set_response_attributes(self.reader.metadata());
        span.set_attribute("error.type", "the server broke off");
        drop(span.close());
    }

    /// Closes the span; the future of its annotation, where the annotation can still be added.
    fn close_span(&mut self) -> Option<Pin<Box<dyn Future<Output = EnergyAnnotation> + Send>>> {
        let mut span = self.stream.span();
        span.set_response_attributes(self.reader.metadata());
        let pending = span.close()?;
        let AnnotationPlacement { comment, trailer, usage } = self.placement;
        let is_needed = comment || trailer || (usage && self.held_line.is_some());
        let metadata = self.reader.metadata().clone();
        is_needed.then(|| Box::pin(pending.wait(metadata)) as Pin<Box<_>>)
    }

    /// Continues after the wait for the annotation.
    fn resume_with(&mut self, annotation: EnergyAnnotation) {
        self.annotation = Some(annotation);
        self.state = StreamState::Streaming;
        self.release_held_line();
    }

    fn release_held_line(&mut self) {
        if let Some(held_line) = self.held_line.take() {
            let energy = self.annotation.as_ref().map_or_else(|| "null".into(), EnergyAnnotation::to_json);
            self.chunks.push_back(held_line.insert(&energy));
            self.inserter.flush(&mut self.chunks);
        }
    }

    /// Adds the annotation after the last byte of the server.
    fn append_annotation(&mut self) {
        let comment = self.placement.comment && self.reader.is_between_events();
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

    /// Reports the server's failure one poll late: hyper discards unsent data on an error, and sends it on `Pending`.
    fn poll_upstream_failure(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let error = match &mut self.state {
            StreamState::UpstreamFailed { sent: sent @ false, .. } => {
                *sent = true;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            StreamState::UpstreamFailed { error, .. } => error.take(),
            _ => None,
        };
        self.state = StreamState::Ended;
        Poll::Ready(error.map(|error| Err(error.into())))
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
                StreamState::Streaming if this.upstream_ended => this.append_annotation(),
                StreamState::Streaming => ready!(this.poll_upstream(cx)),
                StreamState::AwaitingAnnotation(annotation) => {
                    let annotation = ready!(annotation.as_mut().poll(cx));
                    this.resume_with(annotation);
                }
                StreamState::SendingTrailers(trailers) => {
                    let trailers = trailers.take();
                    this.state = StreamState::Ended;
                    if let Some(trailers) = trailers {
                        return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                    }
                }
                StreamState::UpstreamFailed { .. } => return this.poll_upstream_failure(cx),
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
            self.reader.finish();
            span.set_response_attributes(self.reader.metadata());
            // Many clients close the connection at "[DONE]", before the end of the body: the response is complete then.
            if !self.reader.is_complete() && !self.inner.is_end_stream() {
                span.set_attribute("error.type", "the client left");
            }
            drop(span.close());
        }
    }
}
