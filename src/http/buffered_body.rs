//! A body whose chunks are all in memory.
//!
//! Owns the chunks and the trailers after them. States a length only where `has_known_length` is set, so that a body
//! that was received chunked is sent chunked.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

/// The body.
#[derive(Debug, Default)]
pub struct BufferedBody {
    /// What is left of it.
    pub chunks: VecDeque<Bytes>,
    /// What comes last.
    pub trailers: Option<HeaderMap>,
    /// The length is stated.
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
