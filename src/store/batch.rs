//! A batch of packed write operations.
//!
//! A packed account takes a few hundred bytes instead of about a thousand, so that the bounded memory holds more of
//! them while a disk is slow. A batch only grows until it is taken whole.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use wattspan_client::account::Account;

use super::account_record;
use super::journal_clock::{self, ClockRecord};
use super::sum_query::NumberedSumQuery;
use crate::attribution::ShareBasis;

/// A row to be written; its text and figures are in the batch.
#[derive(Debug)]
pub(super) struct PackedRow {
    pub uid: u32,
    pub layout: Arc<[u8]>,
    start: usize,
    span: u32,
    name: u32,
    figures: u32,
}

/// A write operation; a batch applies them in order.
#[derive(Debug)]
pub(super) enum WriteOp {
    /// Store a final account and delete the journal entry of its span.
    InsertAccount { row: PackedRow, journal_key: Option<u64> },
    /// Store the current state of an open span in the journal.
    UpsertJournal { key: u64, row: PackedRow },
    /// Delete the journal entry of a span.
    DeleteJournal { key: u64 },
    /// Replace the journal's record of the clocks by these bytes of the batch.
    SetJournalClocks { bytes: Range<usize> },
}

/// The operations of one transaction.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub ops: Vec<WriteOp>,
    bytes: Vec<u8>,
    /// The sequence number of the last account in the batch.
    pub last_number: u64,
    /// A caller waits for its commit.
    pub urgent: bool,
    /// The sums that begin after its commit.
    pub sums: Vec<NumberedSumQuery>,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty() && self.sums.is_empty()
    }

    /// The approximate memory use.
    pub fn memory_bytes(&self) -> usize {
        self.bytes.len() + self.ops.len() * size_of::<WriteOp>()
    }

    pub fn pack(&mut self, account: &Account, layouts: &mut LayoutCache) -> PackedRow {
        self.pack_journal(account, None, layouts)
    }

    /// Packs a row of the journal, with the bases of its shares after its figures.
    pub fn pack_journal(
        &mut self,
        account: &Account,
        bases: Option<&[ShareBasis]>,
        layouts: &mut LayoutCache,
    ) -> PackedRow {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(account.span.as_bytes());
        self.bytes.extend_from_slice(account.name.as_bytes());
        let text_bytes = account.span.len() + account.name.len();
        account_record::encode_figures(account, &mut self.bytes);
        journal_clock::encode_bases(bases, &mut self.bytes);
        let figures = self.bytes.len() - start - text_bytes;
        PackedRow {
            uid: account.uid,
            layout: layouts.intern(account),
            start,
            span: account.span.len() as u32,
            name: account.name.len() as u32,
            figures: figures as u32,
        }
    }

    /// Packs a record of the clocks; returns its place in the batch.
    pub fn pack_clocks(&mut self, record: &ClockRecord<'_>) -> Range<usize> {
        let start = self.bytes.len();
        record.encode(&mut self.bytes);
        start..self.bytes.len()
    }

    /// The bytes at a place in the batch.
    pub fn packed_bytes(&self, place: &Range<usize>) -> &[u8] {
        &self.bytes[place.clone()]
    }

    /// The span, name and figures of a row.
    pub fn row_fields(&self, row: &PackedRow) -> (&str, &str, &[u8]) {
        let (span_end, name_end) =
            (row.start + row.span as usize, row.start + row.span as usize + row.name as usize);
        let text = |from: usize, to: usize| {
            std::str::from_utf8(&self.bytes[from..to]).expect("it was copied from a text, whole")
        };
        let figures = &self.bytes[name_end..name_end + row.figures as usize];
        (text(row.start, span_end), text(span_end, name_end), figures)
    }
}

/// Recently used layouts, each once.
#[derive(Debug, Default)]
pub(super) struct LayoutCache {
    layouts: HashSet<Arc<[u8]>>,
    scratch: Vec<u8>,
    last: Option<Arc<[u8]>>,
}

impl LayoutCache {
    fn intern(&mut self, account: &Account) -> Arc<[u8]> {
        /// Clients may choose domains in any combination.
        const MAX_LAYOUTS: usize = 1024;
        self.scratch.clear();
        account_record::encode_layout(account, &mut self.scratch);
        if let Some(last) = self.last.as_ref().filter(|last| last[..] == self.scratch[..]) {
            return Arc::clone(last);
        }
        if self.layouts.len() >= MAX_LAYOUTS {
            self.layouts.clear();
        }
        let known = self.layouts.get(&self.scratch[..]).map(Arc::clone);
        let layout = known.unwrap_or_else(|| {
            let layout: Arc<[u8]> = Arc::from(&self.scratch[..]);
            self.layouts.insert(Arc::clone(&layout));
            layout
        });
        self.last = Some(Arc::clone(&layout));
        layout
    }
}
