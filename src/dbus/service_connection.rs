//! A connection to the service, as any client of the socket has one: calls out, answers in.
//!
//! Owns the framing on this side. The service is trusted to answer in order and in its own words; what it says is passed
//! on and never judged.

use std::io;

use serde_json::{Map, Value};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::dbus_error::DbusError;
use crate::protocol::MESSAGE_TERMINATOR;

/// A call on its way to the service.
pub fn encode_call(method: &str, parameters: Map<String, Value>, oneway: bool) -> Vec<u8> {
    let mut call = Map::new();
    call.insert("method".into(), method.into());
    call.insert("parameters".into(), parameters.into());
    if oneway {
        call.insert("oneway".into(), true.into());
    }
    let mut bytes = Value::from(call).to_string().into_bytes();
    bytes.push(MESSAGE_TERMINATOR);
    bytes
}

/// An answer: what the method gave, or why it gave nothing.
pub type ServiceReply = Result<Map<String, Value>, DbusError>;

/// The next answer; `None` once the service has hung up. `buffer` is kept from one answer to the next.
pub async fn read_reply<R: AsyncBufReadExt + Unpin>(
    from: &mut R,
    buffer: &mut Vec<u8>,
) -> Option<ServiceReply> {
    buffer.clear();
    from.read_until(MESSAGE_TERMINATOR, buffer).await.ok()?;
    if buffer.pop() != Some(MESSAGE_TERMINATOR) {
        return None;
    }
    let mut reply: Map<String, Value> = serde_json::from_slice(buffer).ok()?;
    let parameters = reply.remove("parameters").unwrap_or_default();
    Some(match (reply.remove("error"), parameters) {
        (Some(error), parameters) => {
            Err(DbusError::from_service_error(error.as_str().unwrap_or_default(), &parameters.to_string()))
        }
        (None, Value::Object(parameters)) => Ok(parameters),
        (None, _) => Ok(Map::new()),
    })
}

/// A connection for one call at a time.
#[derive(Debug)]
pub struct ServiceConnection {
    stream: BufReader<UnixStream>,
    buffer: Vec<u8>,
}

impl ServiceConnection {
    /// Over a socket from [`ConnectionSender::connect`](crate::server::ConnectionSender::connect).
    pub fn new(stream: std::os::unix::net::UnixStream) -> io::Result<Self> {
        Ok(Self { stream: BufReader::new(into_tokio(stream)?), buffer: Vec::new() })
    }

    /// Asks, and waits for the answer.
    pub async fn call(&mut self, method: &str) -> ServiceReply {
        let sent = self.stream.get_mut().write_all(&encode_call(method, Map::new(), false)).await;
        match sent {
            Ok(()) => read_reply(&mut self.stream, &mut self.buffer)
                .await
                .unwrap_or_else(|| Err(DbusError::no_reply())),
            Err(_) => Err(DbusError::no_reply()),
        }
    }
}

/// The same socket for this thread's runtime.
pub fn into_tokio(stream: std::os::unix::net::UnixStream) -> io::Result<UnixStream> {
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}
