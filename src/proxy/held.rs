//! A reply that is not streamed: its head waits, a little, for its body's end and the account.
//!
//! Owns the bounds. The energy can only stand in the head if the head waits until the body has ended and the account
//! has settled. A server sends such a reply in one go once it is done, so the body's end is there at once; where it is
//! not within [`PATIENCE`], or is larger than [`MOST`], head and body go on as they come, and the energy behind them if
//! at all. With `--annotate off` nothing is ever held.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};

use super::dialect::Dialect;
use super::figures::{ENERGY, Figures};
use super::insertion::Spot;
use super::reading::Said;
use super::streamed::{Streamed, Tail};
use super::weigh::Weighed;
use crate::http::{Body, Pieces};

/// How long a head waits for its body's end.
const PATIENCE: Duration = Duration::from_millis(100);

/// The longest body that is waited for, in bytes.
pub const MOST: u64 = 32 << 10;

/// What came of waiting.
enum Came {
    /// All of it.
    Whole(Option<HeaderMap>),
    /// A part; the rest comes later.
    Part,
    /// The server broke off.
    Broken(hyper::Error),
}

/// The reply with its energy in the head, where that can be had. The inner error: the server broke off, and nothing
/// was sent yet.
pub async fn reply(
    mut head: response::Parts,
    mut body: Incoming,
    weighed: Arc<Weighed>,
    mut dialect: Dialect,
    tail: Tail,
) -> Result<Response<Body>, hyper::Error> {
    let mut pieces = VecDeque::new();
    let trailers = match gather(&mut body, &mut pieces, &mut dialect).await {
        Came::Whole(trailers) => trailers,
        Came::Part => {
            let tail = Tail { comment: false, usage: false, ..tail };
            tail.announce(&mut head.headers);
            let streamed = Streamed::new(body, pieces, weighed, dialect, tail);
            return Ok(Response::from_parts(head, streamed.boxed_unsync()));
        }
        Came::Broken(error) => {
            let mut span = weighed.span();
            span.note("error.type", "the server broke off");
            drop(span.close());
            return Err(error);
        }
    };
    let mut said = Said::default();
    dialect.finish(&mut said);
    let awaited = {
        let mut span = weighed.span();
        span.note_said(&said);
        span.close()
    };
    let known = head.headers.contains_key(header::CONTENT_LENGTH);
    if let Some(awaited) = awaited {
        let figures = awaited.figures(said).await;
        head.headers.insert(ENERGY, figures.header());
        if tail.usage && matches!(dialect, Dialect::Whole(_)) {
            let bytes = pieces.drain(..).flatten().collect();
            pieces.push_back(annotated(&mut head.headers, bytes, &figures).into());
        }
    }
    let body = Pieces { pieces, trailers, known }.map_err(|never| match never {});
    Ok(Response::from_parts(head, body.boxed_unsync()))
}

async fn gather(body: &mut Incoming, pieces: &mut VecDeque<Bytes>, dialect: &mut Dialect) -> Came {
    let deadline = Instant::now() + PATIENCE;
    let mut length = 0;
    loop {
        match timeout_at(deadline, body.frame()).await {
            Err(_) => return Came::Part,
            Ok(None) => return Came::Whole(None),
            Ok(Some(Err(error))) => return Came::Broken(error),
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(piece) => {
                    dialect.feed(&piece);
                    length += piece.len() as u64;
                    pieces.push_back(piece);
                    if length > MOST {
                        return Came::Part;
                    }
                }
                Err(frame) => return Came::Whole(frame.into_trailers().ok()),
            },
        }
    }
}

/// The body with `usage.energy`, and a head that fits.
fn annotated(headers: &mut HeaderMap, bytes: Vec<u8>, figures: &Figures) -> Vec<u8> {
    let says_counts = memchr::memmem::find(&bytes, b"\"eval_count\"").is_some();
    let Some(spot) = Spot::of(&bytes, says_counts) else { return bytes };
    let bytes = spot.put(&bytes, &figures.json());
    if headers.contains_key(header::CONTENT_LENGTH) {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    }
    // A digest of what the server sent is none of what is sent now.
    for name in ["content-md5", "digest", "content-digest", "etag"] {
        headers.remove(name);
    }
    bytes
}
