//! The progress of the server's reply, which the time limit of the request's body depends on.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

/// The number of pieces of a reply that have arrived: its head, and the frames of its body.
#[derive(Debug, Clone, Default)]
pub struct ReplyProgress(Arc<AtomicU64>);

impl ReplyProgress {
    pub fn pieces(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Notes that the head has arrived; counts the frames of the body.
    pub fn observe(self, body: Incoming) -> ObservedReply {
        self.add_piece();
        ObservedReply { body, progress: self }
    }

    fn add_piece(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The body of a reply, whose frames are counted.
pub struct ObservedReply {
    body: Incoming,
    progress: ReplyProgress,
}

impl Body for ObservedReply {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if polled.is_ready() {
            self.progress.add_piece();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
