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

use super::annotation::{ENERGY_HEADER, EnergyAnnotation};
use super::response_metadata::ResponseMetadata;
use super::response_reader::ResponseReader;
use super::streamed_body::{AnnotationPlacement, StreamedBody};
use super::token_weights::WeightedStream;
use super::usage_inserter::InsertionPoint;
use crate::http::{BoxBody, BufferedBody};

/// How long a head waits for its body's end.
const BUFFER_TIMEOUT: Duration = Duration::from_millis(100);

/// The longest body that is waited for, in bytes.
pub const MAX_BUFFERED_BYTES: u64 = 32 << 10;

/// What came of waiting.
enum BufferOutcome {
    /// All of it.
    Complete(Option<HeaderMap>),
    /// A part; the rest comes later.
    Partial,
    /// The server broke off.
    UpstreamFailed(hyper::Error),
}

/// The reply with its energy in the head, where that can be had. The inner error: the server broke off, and nothing
/// was sent yet.
pub async fn respond(
    mut head: response::Parts,
    mut body: Incoming,
    weighed: Arc<WeightedStream>,
    mut dialect: ResponseReader,
    tail: AnnotationPlacement,
) -> Result<Response<BoxBody>, hyper::Error> {
    let mut pieces = VecDeque::new();
    let trailers = match buffer_body(&mut body, &mut pieces, &mut dialect).await {
        BufferOutcome::Complete(trailers) => trailers,
        BufferOutcome::Partial => {
            let tail = AnnotationPlacement { comment: false, usage: false, ..tail };
            tail.announce_trailer(&mut head.headers);
            let streamed = StreamedBody::new(body, pieces, weighed, dialect, tail);
            return Ok(Response::from_parts(head, streamed.boxed_unsync()));
        }
        BufferOutcome::UpstreamFailed(error) => {
            let mut span = weighed.span();
            span.set_attribute("error.type", "the server broke off");
            drop(span.close());
            return Err(error);
        }
    };
    let mut said = ResponseMetadata::default();
    dialect.finish(&mut said);
    let awaited = {
        let mut span = weighed.span();
        span.set_response_attributes(&said);
        span.close()
    };
    let known = head.headers.contains_key(header::CONTENT_LENGTH);
    if let Some(awaited) = awaited {
        let figures = awaited.wait(said).await;
        head.headers.insert(ENERGY_HEADER, figures.header_value());
        if tail.usage && matches!(dialect, ResponseReader::Json(_)) {
            let bytes = pieces.drain(..).flatten().collect();
            pieces.push_back(insert_energy(&mut head.headers, bytes, &figures).into());
        }
    }
    let body =
        BufferedBody { chunks: pieces, trailers, has_known_length: known }.map_err(|never| match never {});
    Ok(Response::from_parts(head, body.boxed_unsync()))
}

async fn buffer_body(
    body: &mut Incoming,
    pieces: &mut VecDeque<Bytes>,
    dialect: &mut ResponseReader,
) -> BufferOutcome {
    let deadline = Instant::now() + BUFFER_TIMEOUT;
    let mut length = 0;
    loop {
        match timeout_at(deadline, body.frame()).await {
            Err(_) => return BufferOutcome::Partial,
            Ok(None) => return BufferOutcome::Complete(None),
            Ok(Some(Err(error))) => return BufferOutcome::UpstreamFailed(error),
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(piece) => {
                    dialect.read_unstreamed_chunk(&piece);
                    length += piece.len() as u64;
                    pieces.push_back(piece);
                    if length > MAX_BUFFERED_BYTES {
                        return BufferOutcome::Partial;
                    }
                }
                Err(frame) => return BufferOutcome::Complete(frame.into_trailers().ok()),
            },
        }
    }
}

/// The body with `usage.energy`, and a head that fits.
fn insert_energy(headers: &mut HeaderMap, bytes: Vec<u8>, figures: &EnergyAnnotation) -> Vec<u8> {
    let says_counts = memchr::memmem::find(&bytes, b"\"eval_count\"").is_some();
    let Some(spot) = InsertionPoint::find(&bytes, says_counts) else { return bytes };
    let bytes = spot.insert(&bytes, &figures.to_json());
    if headers.contains_key(header::CONTENT_LENGTH) {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    }
    // A digest of what the server sent is none of what is sent now.
    for name in ["content-md5", "digest", "content-digest", "etag"] {
        headers.remove(name);
    }
    bytes
}
