//! Types of HTTP bodies: frames from a connection, or chunks in memory.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};

/// The error of an incomplete body.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A body of any source.
pub type BoxBody = UnsyncBoxBody<Bytes, BodyError>;

/// A body of one chunk.
pub fn full_body(bytes: impl Into<Bytes>) -> BoxBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body whose chunks are all in memory.
#[derive(Debug, Default)]
pub struct BufferedBody {
    /// The chunks that are still to be sent.
    pub chunks: VecDeque<Bytes>,
    /// The trailers after the last chunk.
    pub trailers: Option<HeaderMap>,
    /// Whether the body states its length: one that was received chunked is sent chunked.
    pub has_known_length: bool,
}

impl Body for BufferedBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.chunks.pop_front().map(Frame::data);
        Poll::Ready(next.or_else(|| self.trailers.take().map(Frame::trailers)).map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.has_known_length && self.chunks.is_empty() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match self.has_known_length {
            true => SizeHint::with_exact(self.chunks.iter().map(|chunk| chunk.len() as u64).sum()),
            false => SizeHint::default(),
        }
    }
}
