//! What waits to be written, packed.
//!
//! Owns the bytes of a batch: an account that waits takes a few hundred bytes, not the thousand of its open form, so that
//! a slow disk is outwaited longer. A batch only grows until it is taken whole.

use std::collections::HashSet;
use std::sync::Arc;

use super::record;
use crate::attribution::account::Account;

/// A row to be written; its texts lie in its batch.
#[derive(Debug)]
pub(super) struct Row {
    pub uid: u32,
    pub layout: Arc<[u8]>,
    start: usize,
    span: u32,
    name: u32,
    figures: u32,
}

/// What is to be done, in this order.
#[derive(Debug)]
pub(super) enum Order {
    /// Keep a final account, and forget what the journal has of its span.
    Keep { row: Row, forget: Option<u64> },
    /// Note how far an open span has come.
    Journal { key: u64, row: Row },
    /// Forget what the journal has of a span.
    Forget { key: u64 },
}

/// Orders that are carried out together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub orders: Vec<Order>,
    bytes: Vec<u8>,
    /// The number of the last account in it.
    pub last: u64,
    /// Somebody waits for it.
    pub wanted: bool,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.orders.is_empty()
    }

    /// Roughly the memory it takes.
    pub fn weight(&self) -> usize {
        self.bytes.len() + self.orders.len() * size_of::<Order>()
    }

    /// Packs an account.
    pub fn pack(&mut self, account: &Account, layouts: &mut Layouts) -> Row {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(account.span.as_bytes());
        self.bytes.extend_from_slice(account.name.as_bytes());
        let texts = account.span.len() + account.name.len();
        record::write_figures(account, &mut self.bytes);
        let figures = self.bytes.len() - start - texts;
        Row {
            uid: account.uid,
            layout: layouts.of(account),
            start,
            span: account.span.len() as u32,
            name: account.name.len() as u32,
            figures: figures as u32,
        }
    }

    /// A row's span, name and figures.
    pub fn texts(&self, row: &Row) -> (&str, &str, &[u8]) {
        let (span_end, name_end) =
            (row.start + row.span as usize, row.start + row.span as usize + row.name as usize);
        let text = |from: usize, to: usize| {
            std::str::from_utf8(&self.bytes[from..to]).expect("it was copied from a text, whole")
        };
        let figures = &self.bytes[name_end..name_end + row.figures as usize];
        (text(row.start, span_end), text(span_end, name_end), figures)
    }
}

/// Every layout seen of late, once.
#[derive(Debug, Default)]
pub(super) struct Layouts {
    seen: HashSet<Arc<[u8]>>,
    scratch: Vec<u8>,
    last: Option<Arc<[u8]>>,
}

impl Layouts {
    fn of(&mut self, account: &Account) -> Arc<[u8]> {
        /// Clients may choose domains in any combination.
        const MOST: usize = 1024;
        self.scratch.clear();
        record::write_layout(account, &mut self.scratch);
        if let Some(last) = self.last.as_ref().filter(|last| last[..] == self.scratch[..]) {
            return Arc::clone(last);
        }
        if self.seen.len() >= MOST {
            self.seen.clear();
        }
        let known = self.seen.get(&self.scratch[..]).map(Arc::clone);
        let layout = known.unwrap_or_else(|| {
            let layout: Arc<[u8]> = Arc::from(&self.scratch[..]);
            self.seen.insert(Arc::clone(&layout));
            layout
        });
        self.last = Some(Arc::clone(&layout));
        layout
    }
}
