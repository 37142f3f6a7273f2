//! A body of pieces that are there already.
//!
//! Owns the pieces and the trailers behind them. Tells its length only where it is said to be known, so that a body
//! that came in chunks goes on in chunks.

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
    /// The length is told.
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
            true => SizeHint::with_exact(self.chunks.iter().map(|piece| piece.len() as u64).sum()),
            false => SizeHint::default(),
        }
    }
}
