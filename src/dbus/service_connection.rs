//! A connection to the service, as a client of the socket has it.
//!
//! Owns the framing on this side. The service is trusted to reply in order; the content of a reply is passed
//! on unchecked.

use std::io;

use serde_json::{Map, Value};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use wattspan_client::protocol::MESSAGE_TERMINATOR;

use super::dbus_error::DbusError;

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

/// The parameters of a reply, or its error.
pub type ServiceReply = Result<Map<String, Value>, DbusError>;

/// The next reply, or `None` if the service closed the connection. `buffer` is reused.
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
    /// `stream` is from [`ConnectionSender::connect`](crate::server::ConnectionSender::connect).
    pub fn new(stream: std::os::unix::net::UnixStream) -> io::Result<Self> {
        Ok(Self { stream: BufReader::new(into_tokio(stream)?), buffer: Vec::new() })
    }

    /// Sends a call without parameters, and waits for the reply.
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

/// Registers the socket with this thread's runtime.
pub fn into_tokio(stream: std::os::unix::net::UnixStream) -> io::Result<UnixStream> {
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}
