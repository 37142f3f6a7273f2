//! The I/O of a client's connection, with a writer for informational responses.
//!
//! hyper's server sends no informational response except "100 Continue"; this file writes the others ("103 Early
//! Hints") to the same socket. Invariant: it writes only between two messages, when hyper has flushed all its data;
//! at any other time the informational response is dropped: no client depends on it.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use http::{HeaderMap, StatusCode};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, ReadBuf};

use super::head_timer::ReceivedBytes;
use super::listener::{AcceptedConnection, ClientReader, ClientWriter};

pub struct ClientIo {
    reader: TokioIo<CountingReader>,
    writer: Arc<Mutex<SharedWriter>>,
}

/// Counts the bytes that it reads.
struct CountingReader {
    inner: ClientReader,
    received: ReceivedBytes,
}

/// Sends informational responses to the client.
#[derive(Clone)]
pub struct InformationalSender(Arc<Mutex<SharedWriter>>);

struct SharedWriter {
    inner: TokioIo<ClientWriter>,
    /// hyper has no unsent data.
    flushed: bool,
    /// The part of an informational response that the socket has not accepted yet.
    unsent: Vec<u8>,
}

impl ClientIo {
    /// Counts the client's bytes in `received`.
    pub fn new(connection: AcceptedConnection, received: ReceivedBytes) -> (Self, InformationalSender) {
        let (reader, writer) = connection.into_split();
        let writer = SharedWriter { inner: TokioIo::new(writer), flushed: true, unsent: Vec::new() };
        let writer = Arc::new(Mutex::new(writer));
        let reader = TokioIo::new(CountingReader { inner: reader, received });
        (ClientIo { reader, writer: Arc::clone(&writer) }, InformationalSender(writer))
    }

    fn writer(&self) -> MutexGuard<'_, SharedWriter> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InformationalSender {
    /// Sends an informational response, or drops it while other data are being written.
    pub fn send(&self, status: StatusCode, headers: &HeaderMap) {
        let mut head =
            format!("HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or(""));
        for (name, value) in headers {
            let Ok(value) = value.to_str() else { continue };
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let mut writer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !writer.flushed || !writer.unsent.is_empty() {
            return;
        }
        // No task to wake: the next write of hyper sends the part that the socket does not accept now.
        let mut noop_context = Context::from_waker(Waker::noop());
        if let Poll::Ready(Ok(written)) =
            Pin::new(&mut writer.inner).poll_write(&mut noop_context, head.as_bytes())
        {
            writer.unsent = head.split_off(written).into_bytes();
        }
    }
}

impl SharedWriter {
    fn poll_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            match Pin::new(&mut self.inner).poll_write(cx, &self.unsent) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => drop(self.unsent.drain(..written)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for CountingReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let filled = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.received.add(buf.filled().len() - filled);
        polled
    }
}

impl Read for ClientIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(cx, buf)
    }
}

impl Write for ClientIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut writer = self.writer();
        std::task::ready!(writer.poll_unsent(cx))?;
        writer.flushed = false;
        Pin::new(&mut writer.inner).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut writer = self.writer();
        std::task::ready!(writer.poll_unsent(cx))?;
        let flushed = Pin::new(&mut writer.inner).poll_flush(cx);
        writer.flushed |= matches!(flushed, Poll::Ready(Ok(())));
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer().inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.writer().inner.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut writer = self.writer();
        std::task::ready!(writer.poll_unsent(cx))?;
        writer.flushed = false;
        Pin::new(&mut writer.inner).poll_write_vectored(cx, bufs)
    }
}
