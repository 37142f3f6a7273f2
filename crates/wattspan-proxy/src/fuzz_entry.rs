//! The parsers of requests and responses, under names that the fuzz targets can call (docs/fuzzing.md).

use std::collections::VecDeque;

use bytes::Bytes;
use http::HeaderMap;

use super::json_scanner::JsonScanner;
use super::trace_context::TraceContext;
use super::usage_inserter::UsageInserter;

/// The text and the offset of each of these top-level values of a JSON object that arrives in chunks.
pub fn scan<'a>(
    keys: &'static [&'static str],
    chunks: impl IntoIterator<Item = &'a [u8]>,
) -> Vec<Option<(Vec<u8>, usize)>> {
    let mut scanner = JsonScanner::new(keys);
    chunks.into_iter().for_each(|chunk| scanner.feed(chunk));
    keys.iter().map(|key| scanner.get(key).map(|found| (found.text.clone(), found.offset))).collect()
}

/// The stream with the energy inserted, and how often it was.
pub fn insert_usage<'a>(chunks: impl IntoIterator<Item = &'a [u8]>, energy: &str) -> (Vec<u8>, usize) {
    let (mut inserter, mut out) = (UsageInserter::default(), VecDeque::<Bytes>::new());
    let mut inserted = 0;
    for chunk in chunks {
        if let Some(held) = inserter.feed(chunk, &mut out) {
            out.push_back(held.insert(energy));
            inserter.flush(&mut out);
            inserted += 1;
        }
    }
    if let Some(held) = inserter.finish(&mut out) {
        out.push_back(held.insert(energy));
        inserter.flush(&mut out);
        inserted += 1;
    }
    (out.into_iter().flatten().collect(), inserted)
}

/// The trace and the parent span that a request names.
pub fn trace_ids(headers: &HeaderMap) -> Option<(String, String)> {
    TraceContext::extract(headers).map(|context| (context.trace_id, context.parent_id))
}

/// The request's headers after a span of this number was made their trace's parent.
pub fn with_parent(mut headers: HeaderMap, span: u64) -> HeaderMap {
    if let Some(context) = TraceContext::extract(&headers) {
        context.inject(&mut headers, span);
    }
    headers
}
