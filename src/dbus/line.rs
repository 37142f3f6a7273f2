//! A connection to the service, as any client of the socket has one: calls out, answers in.
//!
//! Owns the framing on this side. The service is trusted to answer in order and in its own words; what it says is passed
//! on and never judged.

use std::io;

use serde_json::{Map, Value};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::denial::Denial;
use crate::protocol::END;

/// A call on its way to the service.
pub fn call(method: &str, parameters: Map<String, Value>, oneway: bool) -> Vec<u8> {
    let mut call = Map::new();
    call.insert("method".into(), method.into());
    call.insert("parameters".into(), parameters.into());
    if oneway {
        call.insert("oneway".into(), true.into());
    }
    let mut bytes = Value::from(call).to_string().into_bytes();
    bytes.push(END);
    bytes
}

/// An answer: what the method gave, or why it gave nothing.
pub type Answer = Result<Map<String, Value>, Denial>;

/// The next answer; `None` once the service has hung up. `buffer` is kept from one answer to the next.
pub async fn next<R: AsyncBufReadExt + Unpin>(from: &mut R, buffer: &mut Vec<u8>) -> Option<Answer> {
    buffer.clear();
    from.read_until(END, buffer).await.ok()?;
    if buffer.pop() != Some(END) {
        return None;
    }
    let mut answer: Map<String, Value> = serde_json::from_slice(buffer).ok()?;
    let parameters = answer.remove("parameters").unwrap_or_default();
    Some(match (answer.remove("error"), parameters) {
        (Some(error), parameters) => {
            Err(Denial::of(error.as_str().unwrap_or_default(), &parameters.to_string()))
        }
        (None, Value::Object(parameters)) => Ok(parameters),
        (None, _) => Ok(Map::new()),
    })
}

/// A connection for one call at a time.
#[derive(Debug)]
pub struct Line {
    stream: BufReader<UnixStream>,
    buffer: Vec<u8>,
}

impl Line {
    /// Over the end that an usher gave.
    pub fn over(stream: std::os::unix::net::UnixStream) -> io::Result<Self> {
        Ok(Self { stream: BufReader::new(connected(stream)?), buffer: Vec::new() })
    }

    /// Asks, and waits for the answer.
    pub async fn ask(&mut self, method: &str) -> Answer {
        let asked = self.stream.get_mut().write_all(&call(method, Map::new(), false)).await;
        match asked {
            Ok(()) => next(&mut self.stream, &mut self.buffer).await.unwrap_or_else(|| Err(Denial::gone())),
            Err(_) => Err(Denial::gone()),
        }
    }
}

/// The same socket for this thread's runtime.
pub fn connected(stream: std::os::unix::net::UnixStream) -> io::Result<UnixStream> {
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}
