//! How far a stream of stored accounts (WatchSpans with a position) has come.
//!
//! It has one query in flight, and the caller requests none until the client has read the items of the last one, so that a
//! slow client delays only itself and misses nothing.

use wattspan_client::account::Gap;

use super::list_request::StartPosition;
use crate::store::{Filter, ForwardQuery, ForwardReply, ReplyForm};

/// The time until a query that failed is repeated.
const RETRY_NS: u64 = 1_000_000_000;

#[derive(Debug)]
pub struct StoredStream {
    position: StartPosition,
    /// Gaps after the last item.
    gaps: Vec<Gap>,
    /// What the store had been passed when the query was submitted.
    requested: u64,
    is_in_flight: bool,
    /// The same, when the stream last came to the end of what was stored; `None`: there may be more.
    end: Option<u64>,
    /// The time before which no query is submitted, after one that failed.
    retry_ns: u64,
}

impl StoredStream {
    pub fn new(position: StartPosition) -> Self {
        Self { position, gaps: Vec::new(), requested: 0, is_in_flight: false, end: None, retry_ns: 0 }
    }

    /// The query for the next accounts, unless one is in flight or nothing was passed to the store since the last one. The
    /// caller calls [`Self::begin_query`] if the store takes it. `uid`: the user whose accounts are streamed; `None`: all.
    pub fn next_query(&self, uid: Option<u32>, last_store_number: u64, now_ns: u64) -> Option<ForwardQuery> {
        if self.is_in_flight || self.is_at_end(last_store_number) || now_ns < self.retry_ns {
            return None;
        }
        Some(ForwardQuery {
            uid,
            filter: Filter::default(),
            limit: usize::MAX,
            after: self.position.after,
            database: self.position.database,
            form: ReplyForm::Stream,
            gaps: self.gaps.clone(),
        })
    }

    /// Whether all accounts up to this number that are stored were returned.
    pub fn is_at_end(&self, last_store_number: u64) -> bool {
        self.end == Some(last_store_number)
    }

    /// Notes that the query was submitted.
    pub fn begin_query(&mut self, last_store_number: u64) {
        (self.is_in_flight, self.requested) = (true, last_store_number);
    }

    /// Notes the result of the query; `None`: it failed, and is repeated after a second.
    pub fn end_query(&mut self, reply: Option<&ForwardReply>, now_ns: u64) {
        self.is_in_flight = false;
        match reply {
            None => self.retry_ns = now_ns + RETRY_NS,
            Some(ForwardReply { after, at_end, database, gaps, .. }) => {
                self.position = StartPosition { after: *after, database: Some(*database) };
                self.end = at_end.then_some(self.requested);
                self.gaps.clone_from(gaps);
            }
        }
    }
}
