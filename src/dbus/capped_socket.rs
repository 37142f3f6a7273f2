//! The socket to the bus, with a limit on the size of a message.
//!
//! zbus accepts and queues messages of 128 MiB, and the system bus forwards up to 32 MiB from any user. This
//! socket drops the body of a larger message piece by piece, so that the sender still gets a reply.
//! Invariant: no message passed to zbus exceeds the limit. Passing of descriptors is not negotiated, so the
//! bus rejects messages with descriptors.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, copy_buf, sink};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use zbus::Message;
use zbus::connection::socket::{ReadHalf, Socket, Split, WriteHalf};
use zbus::export::async_trait::async_trait;

const READ_BUFFER_BYTES: usize = 32 * 1024;

/// The fixed part of a message header. It contains the lengths of the rest.
const FIXED_HEADER_BYTES: usize = 16;

#[derive(Debug)]
pub struct CappedSocket {
    stream: UnixStream,
    max_message_bytes: usize,
}

impl CappedSocket {
    /// Wraps a connected socket. A message larger than `max_message_bytes` loses its body.
    pub fn new(stream: UnixStream, max_message_bytes: usize) -> Self {
        Self { stream, max_message_bytes }
    }
}

impl Socket for CappedSocket {
    type ReadHalf = CappedReader;
    type WriteHalf = BusWriter;

    fn split(self) -> Split<CappedReader, BusWriter> {
        let (read, write) = self.stream.into_split();
        let stream = BufReader::with_capacity(READ_BUFFER_BYTES, read);
        Split::new(
            CappedReader { stream, leftover: Vec::new(), max_message_bytes: self.max_message_bytes },
            BusWriter(write),
        )
    }
}

#[derive(Debug)]
pub struct CappedReader {
    stream: BufReader<OwnedReadHalf>,
    /// Bytes that the handshake read beyond its end. They come first.
    leftover: Vec<u8>,
    max_message_bytes: usize,
}

impl CappedReader {
    /// Reads the next message that fits the limit, or whose header does.
    async fn read_message(&mut self) -> io::Result<Vec<u8>> {
        loop {
            let mut fixed_header = [0; FIXED_HEADER_BYTES];
            self.read_exact(&mut fixed_header).await?;
            let (header, body) = message_lengths(&fixed_header);
            if header > self.max_message_bytes {
                self.skip(header - FIXED_HEADER_BYTES + body).await?;
                continue;
            }
            let kept = if header + body > self.max_message_bytes { 0 } else { body };
            let mut message = vec![0; header + kept];
            message[..FIXED_HEADER_BYTES].copy_from_slice(&fixed_header);
            if kept < body {
                message[4..8].fill(0);
            }
            self.read_exact(&mut message[FIXED_HEADER_BYTES..]).await?;
            self.skip(body - kept).await?;
            return Ok(message);
        }
    }

    async fn read_exact(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let length = self.leftover.len().min(buffer.len());
        for (byte, early) in buffer.iter_mut().zip(self.leftover.drain(..length)) {
            *byte = early;
        }
        self.stream.read_exact(&mut buffer[length..]).await.map(drop)
    }

    async fn skip(&mut self, bytes: usize) -> io::Result<()> {
        let early = self.leftover.len().min(bytes);
        self.leftover.drain(..early);
        let bytes = (bytes - early) as u64;
        match copy_buf(&mut (&mut self.stream).take(bytes), &mut sink()).await? {
            skipped if skipped == bytes => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// The lengths of a message's header, padding included, and of its body.
pub fn message_lengths(fixed_header: &[u8; FIXED_HEADER_BYTES]) -> (usize, usize) {
    let number = |at: usize| {
        let bytes = [fixed_header[at], fixed_header[at + 1], fixed_header[at + 2], fixed_header[at + 3]];
        // zbus rejects a message with an invalid byte order.
        (if fixed_header[0] == b'B' { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }) as usize
    };
    ((FIXED_HEADER_BYTES + number(12)).next_multiple_of(8), number(4))
}

#[async_trait]
impl ReadHalf for CappedReader {
    async fn receive_message(
        &mut self,
        seq: u64,
        leftover: &mut Vec<u8>,
        fds: &mut Vec<OwnedFd>,
    ) -> zbus::Result<Message> {
        self.leftover.append(leftover);
        BufferedMessage { bytes: self.read_message().await?, read: 0 }
            .receive_message(seq, leftover, fds)
            .await
    }

    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        Ok((self.stream.read(buffer).await?, Vec::new()))
    }
}

/// A message in memory, from which zbus parses it.
#[derive(Debug)]
struct BufferedMessage {
    bytes: Vec<u8>,
    read: usize,
}

#[async_trait]
impl ReadHalf for BufferedMessage {
    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        let rest = &self.bytes[self.read..];
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        self.read += length;
        Ok((length, Vec::new()))
    }
}

#[derive(Debug)]
pub struct BusWriter(OwnedWriteHalf);

#[async_trait]
impl WriteHalf for BusWriter {
    async fn sendmsg(&mut self, buffer: &[u8], _: &[BorrowedFd<'_>]) -> io::Result<usize> {
        self.0.write(buffer).await
    }

    async fn close(&mut self) -> io::Result<()> {
        self.0.shutdown().await
    }
}

/// Whether a message lost its body: its header has a signature, but the body is empty.
pub fn is_truncated(message: &Message) -> bool {
    let body = message.body();
    body.is_empty() && !body.signature().to_string_no_parens().is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The messages that a capped socket returns for these messages.
    fn received_messages(messages: &[Message], max_message_bytes: usize) -> Vec<Message> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (ours, mut bus) = UnixStream::pair().unwrap();
            let (mut inbound, _outbound) = CappedSocket::new(ours, max_message_bytes).split().take();
            let bytes: Vec<u8> = messages.iter().flat_map(|message| message.data().to_vec()).collect();
            let sending = tokio::spawn(async move { bus.write_all(&bytes).await });
            let mut received = Vec::new();
            // As after a handshake that read ahead: the first bytes of the first message.
            let mut leftover = vec![0; 5];
            inbound.stream.read_exact(&mut leftover).await.unwrap();
            while let Ok(message) = inbound.receive_message(1, &mut leftover, &mut Vec::new()).await {
                received.push(message);
            }
            sending.await.unwrap().unwrap();
            received
        })
    }

    fn call(path: &str, body: &str) -> Message {
        Message::method_call(path, "Any").build(&body).unwrap()
    }

    #[test]
    fn an_oversized_message_loses_its_body_and_the_next_is_intact() {
        let long = "x".repeat(3 << 20);
        let received = received_messages(&[call("/a", &long), call("/b", "short")], 4096);
        assert_eq!(received.iter().map(is_truncated).collect::<Vec<_>>(), [true, false]);
        assert_eq!(received[0].header().path().unwrap().as_str(), "/a");
        assert!(received[0].body().deserialize::<&str>().is_err());
        assert_eq!(received[1].body().deserialize::<&str>().unwrap(), "short");
    }

    #[test]
    fn a_message_of_exactly_the_cap_is_intact() {
        let fits = call("/a", "just so");
        let max_bytes = fits.data().len();
        assert_eq!(
            received_messages(std::slice::from_ref(&fits), max_bytes)
                .iter()
                .map(is_truncated)
                .collect::<Vec<_>>(),
            [false]
        );
        assert_eq!(
            received_messages(&[fits], max_bytes - 1).iter().map(is_truncated).collect::<Vec<_>>(),
            [true]
        );
    }

    #[test]
    fn a_message_with_an_oversized_header_is_skipped() {
        let path = format!("/{}", "x".repeat(10_000));
        let received = received_messages(&[call(&path, "a"), call("/b", "b")], 4096);
        assert_eq!(received.len(), 1);
        assert_eq!(received[0].header().path().unwrap().as_str(), "/b");
    }

    #[test]
    fn message_lengths_follow_the_senders_byte_order() {
        let message = Message::method_call("/a", "Any").endian(zbus::wire::Endian::Big).build(&"x").unwrap();
        let fixed_header: [u8; FIXED_HEADER_BYTES] = message.data()[..FIXED_HEADER_BYTES].try_into().unwrap();
        let (header, body) = message_lengths(&fixed_header);
        assert_eq!(header + body, message.data().len());
    }
}
