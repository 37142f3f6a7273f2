//! A reply that is not streamed: its head waits, a little, for its body's end and the account.
//!
//! Owns the bounds. The energy can only stand in the head if the head waits until the body has ended and the account
//! has settled. A server sends such a reply in one go once it is done, so the body's end is there at once; where it is
//! not within [`BUFFER_TIMEOUT`], or is larger than [`MAX_BUFFERED_BYTES`], head and body go on as they come, and the
//! energy after them if at all. With `--annotate off` nothing is ever buffered.

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
    stream: Arc<WeightedStream>,
    mut reader: ResponseReader,
    placement: AnnotationPlacement,
) -> Result<Response<BoxBody>, hyper::Error> {
    let mut chunks = VecDeque::new();
    let trailers = match buffer_body(&mut body, &mut chunks, &mut reader).await {
        BufferOutcome::Complete(trailers) => trailers,
        BufferOutcome::Partial => {
            let placement = AnnotationPlacement { comment: false, usage: false, ..placement };
            placement.announce_trailer(&mut head.headers);
            let streamed = StreamedBody::new(body, chunks, stream, reader, placement);
            return Ok(Response::from_parts(head, streamed.boxed_unsync()));
        }
        BufferOutcome::UpstreamFailed(error) => {
            let mut span = stream.span();
            span.set_attribute("error.type", "the server broke off");
            drop(span.close());
            return Err(error);
        }
    };
    let mut metadata = ResponseMetadata::default();
    reader.finish(&mut metadata);
    let pending = {
        let mut span = stream.span();
        span.set_response_attributes(&metadata);
        span.close()
    };
    let has_known_length = head.headers.contains_key(header::CONTENT_LENGTH);
    if let Some(pending) = pending {
        let annotation = pending.wait(metadata).await;
        head.headers.insert(ENERGY_HEADER, annotation.header_value());
        if placement.usage && matches!(reader, ResponseReader::Json(_)) {
            let bytes = chunks.drain(..).flatten().collect();
            chunks.push_back(insert_energy(&mut head.headers, bytes, &annotation).into());
        }
    }
    let body = BufferedBody { chunks, trailers, has_known_length }.map_err(|never| match never {});
    Ok(Response::from_parts(head, body.boxed_unsync()))
}

async fn buffer_body(
    body: &mut Incoming,
    chunks: &mut VecDeque<Bytes>,
    reader: &mut ResponseReader,
) -> BufferOutcome {
    let deadline = Instant::now() + BUFFER_TIMEOUT;
    let mut length = 0;
    loop {
        match timeout_at(deadline, body.frame()).await {
            Err(_) => return BufferOutcome::Partial,
            Ok(None) => return BufferOutcome::Complete(None),
            Ok(Some(Err(error))) => return BufferOutcome::UpstreamFailed(error),
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(chunk) => {
                    reader.read_unstreamed_chunk(&chunk);
                    length += chunk.len() as u64;
                    chunks.push_back(chunk);
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
fn insert_energy(headers: &mut HeaderMap, bytes: Vec<u8>, annotation: &EnergyAnnotation) -> Vec<u8> {
    let has_token_counts = memchr::memmem::find(&bytes, b"\"eval_count\"").is_some();
    let Some(point) = InsertionPoint::find(&bytes, has_token_counts) else { return bytes };
    let bytes = point.insert(&bytes, &annotation.to_json());
    if headers.contains_key(header::CONTENT_LENGTH) {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    }
    // A digest of what the server sent is none of what is sent now.
    for name in ["content-md5", "digest", "content-digest", "etag"] {
        headers.remove(name);
    }
    bytes
}
