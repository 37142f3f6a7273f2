//! A client's connection that can be told of a server's early words.
//!
//! Owns the socket. hyper's server sends no informational replies but "100 Continue", so that a server's "103 Early
//! Hints" would get lost; here they are written beside it. Invariant: that happens only between two messages, when hyper
//! has flushed all it had; at any other moment the hint is dropped, which a receiver never notices.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use http::{HeaderMap, StatusCode};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;

use super::listen::{Connection, Reader, Writer as Outgoing};

/// The connection.
pub struct Wire {
    reader: TokioIo<Reader>,
    writer: Arc<Mutex<Writer>>,
}

/// The side way to the client.
#[derive(Clone)]
pub struct Aside(Arc<Mutex<Writer>>);

struct Writer {
    half: TokioIo<Outgoing>,
    /// hyper has nothing more to write.
    flushed: bool,
    /// What was begun aside and did not fit.
    rest: Vec<u8>,
}

impl Wire {
    /// A connection, and the side way to its client.
    pub fn new(connection: Connection) -> (Self, Aside) {
        let (reader, writer) = connection.into_split();
        let writer = Writer { half: TokioIo::new(writer), flushed: true, rest: Vec::new() };
        let writer = Arc::new(Mutex::new(writer));
        (Wire { reader: TokioIo::new(reader), writer: Arc::clone(&writer) }, Aside(writer))
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Aside {
    /// Passes an informational reply on, if nothing else is being written.
    pub fn inform(&self, status: StatusCode, headers: &HeaderMap) {
        let mut head =
            format!("HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or(""));
        for (name, value) in headers {
            let Ok(value) = value.to_str() else { continue };
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let mut writer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !writer.flushed || !writer.rest.is_empty() {
            return;
        }
        // Without a task to wake: what the socket does not take now goes out before hyper's next write.
        let mut unwoken = Context::from_waker(Waker::noop());
        if let Poll::Ready(Ok(written)) = Pin::new(&mut writer.half).poll_write(&mut unwoken, head.as_bytes())
        {
            writer.rest = head.split_off(written).into_bytes();
        }
    }
}

impl Writer {
    /// Writes the rest of what was begun aside.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.rest.is_empty() {
            match Pin::new(&mut self.half).poll_write(cx, &self.rest) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => drop(self.rest.drain(..written)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Read for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(cx, buf)
    }
}

impl Write for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut writer = self.writer();
        std::task::ready!(writer.poll_rest(cx))?;
        writer.flushed = false;
        Pin::new(&mut writer.half).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut writer = self.writer();
        std::task::ready!(writer.poll_rest(cx))?;
        let flushed = Pin::new(&mut writer.half).poll_flush(cx);
        writer.flushed |= matches!(flushed, Poll::Ready(Ok(())));
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer().half).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.writer().half.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut writer = self.writer();
        std::task::ready!(writer.poll_rest(cx))?;
        writer.flushed = false;
        Pin::new(&mut writer.half).poll_write_vectored(cx, bufs)
    }
}
