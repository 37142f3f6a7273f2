//! The decoders of accounts on disk, under names that the fuzz targets can call (docs/fuzzing.md).

use std::collections::{BTreeMap, HashMap, HashSet};

use wattspan_client::account::{Account, SpanState};

use super::account_index::{self, NameEntry};
use super::account_record::{self, AccountIdentity};
use super::account_table::{self, SpanName};
use super::high_water_mark;
use super::journal_clock::StoredClocks;
use super::segment_filter;
use super::summed_account::SummedAccount;
use crate::domain::Grade;

/// The stored columns of an account.
#[derive(Debug, Clone, Copy)]
pub struct StoredColumns<'a> {
    /// The user.
    pub uid: u32,
    /// The span's ID.
    pub span: &'a str,
    /// The span's name.
    pub name: &'a str,
    /// The domains.
    pub layout: &'a [u8],
    /// The figures, as variable-length integers.
    pub figures: &'a [u8],
}

/// The fields that sums read.
#[derive(Debug, Clone, PartialEq)]
pub struct SummedFields {
    /// As in the account.
    pub state: SpanState,
    /// The worst grade.
    pub grade: Option<Grade>,
    /// The wall time of the opening.
    pub opened_unix_ns: u64,
    /// The time between opening and closing.
    pub duration_ns: Option<u64>,
    /// Share, idle part and error.
    pub energy_uj: [Option<u64>; 3],
    /// By which sums are grouped.
    pub model: Option<String>,
}

impl StoredColumns<'_> {
    fn identity(&self) -> AccountIdentity<'_> {
        AccountIdentity { uid: self.uid, span: self.span, name: self.name }
    }

    /// The decoded account; `None` if the columns are not valid.
    pub fn account(&self) -> Option<Account> {
        account_record::decode(self.identity(), self.layout, self.figures)
    }

    /// The fields that sums read without decoding the account.
    pub fn summed_fields(&self) -> Option<SummedFields> {
        let summed = SummedAccount::read(self.uid, self.name, self.layout, self.figures)?;
        let attributes = summed.attributes()?;
        let _ = summed.has_attribute("model", "a");
        Some(SummedFields {
            state: summed.state,
            grade: summed.grade,
            opened_unix_ns: summed.opened_unix_ns,
            duration_ns: summed.duration_ns,
            energy_uj: [summed.share_uj, summed.idle_uj, summed.error_uj],
            model: attributes.model.map(str::to_owned),
        })
    }

    /// The account of a journal's row with these clocks.
    pub fn extended_account(&self, clocks: &[u8], key: u64) -> Option<Account> {
        StoredClocks::decode(clocks).extended_account(key, self.identity(), self.layout, self.figures)
    }

    /// Whether a search for the account's own name and attributes passes the filter of its segment.
    pub fn passes_filter(&self, attributes: &BTreeMap<String, String>) -> bool {
        let mut hashes = HashSet::new();
        segment_filter::add_values(|hash| _ = hashes.insert(hash), self.uid, self.name, self.figures);
        [None, Some(self.uid)].into_iter().all(|uid| {
            let searched = segment_filter::searched_values(uid, Some(self.name), attributes);
            searched.iter().all(|hash| hashes.contains(hash))
        })
    }
}

/// The layout and the figures of an account.
pub fn encode_account(account: &Account) -> (Vec<u8>, Vec<u8>) {
    let (mut layout, mut figures) = (Vec::new(), Vec::new());
    account_record::encode_layout(account, &mut layout);
    account_record::encode_figures(account, &mut figures);
    (layout, figures)
}

/// A block with its checksum.
pub fn append_checksum(key: i64, block: &[u8]) -> Vec<u8> {
    account_index::append_checksum(key, block.to_vec())
}

/// A block without its checksum; `None` if the checksum is wrong.
pub fn strip_checksum(key: i64, stored: &[u8]) -> Option<&[u8]> {
    account_index::strip_checksum(key, stored)
}

/// The entries of a name block: hash, user and ID.
pub fn name_entries(segment: i64, block: &[u8]) -> Vec<(u32, u32, i64)> {
    account_index::decode_names(segment, block).map(|entry| (entry.hash, entry.uid, entry.id)).collect()
}

/// The entries of all name blocks of a segment that has these entries.
pub fn stored_name_entries(segment: i64, entries: &[(u32, u32, i64)]) -> Vec<(u32, u32, i64)> {
    let names = entries.iter().map(|(hash, uid, id)| NameEntry { hash: *hash, uid: *uid, id: *id }).collect();
    let blocks = account_index::encode_blocks(segment, &names);
    blocks.iter().flat_map(|block| name_entries(segment, &block[..block.len() - 4])).collect()
}

/// Each user's latest account.
pub fn heads(block: &[u8]) -> HashMap<u32, i64> {
    account_index::decode_heads(block)
}

/// Whether a file of this content is a valid high-water mark.
pub fn is_high_water_mark(record: &[u8]) -> bool {
    high_water_mark::RECORD_LENGTHS.contains(&record.len()) && high_water_mark::decode(record).is_some()
}

/// The span's ID as it is read after it was stored.
pub fn stored_span_name(span: &str) -> Option<String> {
    account_table::decode_span_name(SpanName::parse(span).as_value())
}
