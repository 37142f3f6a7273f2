//! The request's body on its way to the server, read along.
//!
//! Owns the gate of `Expect: 100-continue`: the client is only told to go on once the server said so, or did not say
//! anything for a while. Keeps none of the body but the model's name.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::oneshot;
use tokio::time::Sleep;

use super::json_scanner::JsonScanner;
use crate::http::BodyError;

/// How long the server may take to say "100 Continue". Servers that know nothing of it wait for the body themselves.
const CONTINUE_TIMEOUT: Duration = Duration::from_secs(1);

/// What is known of the request's body so far.
#[derive(Clone)]
pub struct RequestedModel(Arc<Mutex<JsonScanner>>);

impl RequestedModel {
    /// Nothing yet.
    pub fn new() -> Self {
        RequestedModel(Arc::new(Mutex::new(JsonScanner::new(&["model"]))))
    }

    /// The model that was asked for, if the body named one so far.
    pub fn get(&self) -> Option<String> {
        let scanner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        serde_json::from_slice(&scanner.get("model")?.text).ok()
    }

    fn scan(&self, chunk: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).feed(chunk);
    }
}

/// Opens when the server says "100 Continue", or when it took too long.
pub struct ContinueGate {
    /// `None` once the sender is dropped: it must not be polled again then.
    received: Option<oneshot::Receiver<()>>,
    timeout: Pin<Box<Sleep>>,
}

impl ContinueGate {
    /// A gate, and the sender that opens it.
    pub fn new() -> (Self, oneshot::Sender<()>) {
        let (continue_sender, received) = oneshot::channel();
        (
            ContinueGate {
                received: Some(received),
                timeout: Box::pin(tokio::time::sleep(CONTINUE_TIMEOUT)),
            },
            continue_sender,
        )
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(received) = &mut self.received {
            match Pin::new(received).poll(cx) {
                Poll::Ready(Ok(())) => return Poll::Ready(()),
                // The request's head was answered without it, or the server speaks HTTP/2, whose early words are not
                // heard: the body goes on after the time-out all the same.
                Poll::Ready(Err(_)) => self.received = None,
                Poll::Pending => {}
            }
        }
        self.timeout.as_mut().poll(cx)
    }
}

/// The body.
pub struct RequestBody {
    inner: Incoming,
    gate: Option<ContinueGate>,
    requested_model: Option<RequestedModel>,
}

impl RequestBody {
    /// The body `inner`; `gate`, if any, delays it, and `requested_model` reads along.
    pub fn new(inner: Incoming, gate: Option<ContinueGate>, requested_model: Option<RequestedModel>) -> Self {
        RequestBody { inner, gate, requested_model }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(gate) = &mut self.gate {
            match gate.poll(cx) {
                Poll::Ready(()) => self.gate = None,
                Poll::Pending => return Poll::Pending,
            }
        }
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        if let (Poll::Ready(Some(Ok(frame))), Some(requested_model)) = (&polled, &self.requested_model)
            && let Some(data) = frame.data_ref()
        {
            requested_model.scan(data);
        }
        polled.map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
