//! The rows of accounts and of the journal: columns, checksums, and the statements that write them.
//!
//! Each row has a checksum over all its columns, including the bytes of its layout. An account's row has the ID of its
//! user's previous account. A row that differs from what was written reads as `None`.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, Row, Transaction, params};

use super::account_index::{self, AccountIndex, Gap, HEADS, segment_of};
use super::checksum::Checksum;
use super::journal_clock::CLOCK_BLOCK;
use super::segment_filter;
use super::sum_blocks;
use super::time::CommitTime;

/// The maximum number of layouts in the layout table. Clients may choose domains in any combination; a further layout
/// is stored in the row of its account.
const MAX_LAYOUTS: usize = 256;

/// The columns of [`AccountRow`], in the order in which they are read.
pub(super) const ACCOUNT_COLUMNS: &str =
    "id, uid, kept_s, running_s, previous, layout, span, name, figures, crc FROM account";

/// The columns of an account that its row in the account table and its journal entry have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct AccountColumns<'a> {
    pub uid: u32,
    pub layout: &'a [u8],
    /// In the stored form: see [`SpanName`].
    pub span: ValueRef<'a>,
    pub name: &'a str,
    pub figures: &'a [u8],
}

impl AccountColumns<'_> {
    fn checksum(&self, integers: &[i64]) -> i32 {
        let sum = Checksum::default().numbers(integers).numbers(&[i64::from(self.uid)]);
        sum.bytes(self.layout).value(self.span).bytes(self.name.as_bytes()).bytes(self.figures).finish()
    }
}

/// A row whose checksum is correct.
#[derive(Debug, Clone, Copy)]
pub(super) struct AccountRow<'a> {
    pub id: i64,
    pub kept_s: i64,
    pub running_s: i64,
    /// The ID of the user's previous account; 0 if there is none; `id - 1` if it was not known.
    pub previous: i64,
    pub columns: AccountColumns<'a>,
}

impl<'a> AccountRow<'a> {
    /// Reads a row; `None` if it differs from what was written.
    pub fn read(row: &'a Row<'_>, layouts: &'a LayoutTable) -> Option<Self> {
        let number = |at| row.get_ref(at).ok()?.as_i64().ok();
        let (id, kept_s, running_s, previous) = (number(0)?, number(2)?, number(3)?, number(4)?);
        let columns = AccountColumns {
            uid: u32::try_from(number(1)?).ok()?,
            layout: layouts.resolve(row.get_ref(5).ok()?)?,
            span: row.get_ref(6).ok()?,
            name: row.get_ref(7).ok()?.as_str().ok()?,
            figures: row.get_ref(8).ok()?.as_blob().ok()?,
        };
        let sound = number(9)? == i64::from(columns.checksum(&[id, kept_s, running_s, previous]));
        sound.then_some(Self { id, kept_s, running_s, previous, columns })
    }
}

/// The layouts that are stored once, by ID.
#[derive(Debug, Default)]
pub(super) struct LayoutTable {
    ids: HashMap<Arc<[u8]>, i64>,
    by_id: HashMap<i64, Arc<[u8]>>,
}

impl LayoutTable {
    pub fn load(connection: &Connection) -> rusqlite::Result<Self> {
        let mut all = connection.prepare("SELECT id, domains FROM layout")?;
        let mut rows = all.query([])?;
        let mut layouts = Self::default();
        while let Some(row) = rows.next()? {
            // The checksums of the accounts that use a damaged layout detect it.
            if let (Ok(id), Ok(domains)) = (row.get(0), row.get_ref(1)?.as_blob()) {
                layouts.insert(id, Arc::from(domains));
            }
        }
        Ok(layouts)
    }

    pub fn len(&self) -> usize {
        self.ids.len()
    }

    fn insert(&mut self, id: i64, domains: Arc<[u8]>) {
        self.by_id.insert(id, Arc::clone(&domains));
        self.ids.insert(domains, id);
    }

    /// The layout of a row, whose column has the layout's ID or its bytes.
    pub fn resolve<'a>(&'a self, stored: ValueRef<'a>) -> Option<&'a [u8]> {
        match stored {
            ValueRef::Blob(own) => Some(own),
            ValueRef::Integer(id) => self.by_id.get(&id).map(|bytes| &bytes[..]),
            _ => None,
        }
    }
}

/// Reads a row of the journal; `None` if it differs from what was written.
pub(super) fn read_journal_row<'a>(row: &'a Row<'_>, layouts: &'a LayoutTable) -> Option<AccountColumns<'a>> {
    let number = |at| row.get_ref(at).ok()?.as_i64().ok();
    let columns = AccountColumns {
        uid: u32::try_from(number(1)?).ok()?,
        layout: layouts.resolve(row.get_ref(2).ok()?)?,
        span: row.get_ref(3).ok()?,
        name: row.get_ref(4).ok()?.as_str().ok()?,
        figures: row.get_ref(5).ok()?.as_blob().ok()?,
    };
    (number(6)? == i64::from(columns.checksum(&[number(0)?]))).then_some(columns)
}

/// The statements of one transaction.
pub(super) struct TransactionWriter<'a> {
    transaction: &'a Transaction<'a>,
    insert_account: LazyStatement<'a>,
    upsert_journal: LazyStatement<'a>,
    delete_journal: LazyStatement<'a>,
    layouts: &'a mut LayoutTable,
    pub index: &'a mut AccountIndex,
    pub commit_time: CommitTime,
}

/// A statement that is compiled at its first use: a transaction with one account needs one of three, and compiling it takes
/// longer than running it.
struct LazyStatement<'a> {
    sql: &'static str,
    prepared: Option<rusqlite::Statement<'a>>,
}

impl<'a> LazyStatement<'a> {
    fn execute(
        &mut self,
        transaction: &'a Transaction<'a>,
        values: impl rusqlite::Params,
    ) -> rusqlite::Result<()> {
        let statement = match &mut self.prepared {
            Some(statement) => statement,
            none => none.insert(transaction.prepare(self.sql)?),
        };
        statement.execute(values).map(drop)
    }
}

impl<'a> TransactionWriter<'a> {
    pub fn new(
        transaction: &'a Transaction<'a>,
        layouts: &'a mut LayoutTable,
        index: &'a mut AccountIndex,
        commit_time: CommitTime,
    ) -> Self {
        let statement = |sql| LazyStatement { sql, prepared: None };
        Self {
            transaction,
            insert_account: statement("INSERT INTO account VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)"),
            upsert_journal: statement("INSERT OR REPLACE INTO journal VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"),
            delete_journal: statement("DELETE FROM journal WHERE key = ?1"),
            layouts,
            index,
            commit_time,
        }
    }

    /// Inserts an account under the next ID.
    pub fn insert_account(&mut self, columns: &AccountColumns<'_>) -> rusqlite::Result<()> {
        let layout = self.layout_value(columns.layout)?;
        let (id, previous) =
            self.index.append(columns.uid, account_index::name_hash(name_bytes(columns.span)));
        let add = |hash| self.index.add_value(hash);
        segment_filter::add_values(add, columns.uid, columns.name, columns.figures);
        let CommitTime { kept_s, running_s } = self.commit_time;
        self.index.open_sums.add(
            columns.uid,
            columns.name,
            columns.layout,
            columns.figures,
            (kept_s, previous),
        );
        let crc = columns.checksum(&[id, kept_s, running_s, previous]);
        let span = ToSqlOutput::Borrowed(columns.span);
        let AccountColumns { uid, name, figures, .. } = columns;
        let values = params![id, uid, kept_s, running_s, previous, layout, span, name, figures, crc];
        self.insert_account.execute(self.transaction, values)?;
        if segment_of(id + 1) == segment_of(id) { Ok(()) } else { self.seal_segment(segment_of(id)) }
    }

    pub fn upsert_journal(&mut self, key: i64, columns: &AccountColumns<'_>) -> rusqlite::Result<()> {
        let layout = self.layout_value(columns.layout)?;
        let (span, crc) = (ToSqlOutput::Borrowed(columns.span), columns.checksum(&[key]));
        let AccountColumns { uid, name, figures, .. } = columns;
        self.upsert_journal.execute(self.transaction, params![key, uid, layout, span, name, figures, crc])
    }

    pub fn delete_journal(&mut self, key: u64) -> rusqlite::Result<()> {
        self.delete_journal.execute(self.transaction, [key.cast_signed()])
    }

    /// Replaces the journal's record of the clocks.
    pub fn set_clocks(&mut self, record: &[u8]) -> rusqlite::Result<()> {
        let block = account_index::append_checksum(CLOCK_BLOCK, record.to_vec());
        let sql = "INSERT OR REPLACE INTO block VALUES (?1, ?2)";
        self.transaction.execute(sql, params![CLOCK_BLOCK, block]).map(drop)
    }

    /// Records that a range of accounts may be lost; the next ID lies after it.
    pub fn insert_gap(&mut self, gap: Gap) -> rusqlite::Result<()> {
        let values = params![gap.first, gap.last, gap.since_s, gap.until_s, gap.running_s];
        self.transaction.execute("INSERT OR REPLACE INTO gap VALUES (?1, ?2, ?3, ?4, ?5)", values)?;
        self.index.gaps.push(gap);
        self.index.gaps.sort_by_key(|gap| gap.first);
        let segment = segment_of(self.index.last_id + 1);
        self.index.last_id = self.index.last_id.max(gap.last);
        if segment_of(self.index.last_id + 1) == segment { Ok(()) } else { self.seal_segment(segment) }
    }

    /// Records that the account with the next ID may be lost.
    pub fn insert_gap_of_one(&mut self) -> rusqlite::Result<()> {
        let (id, CommitTime { kept_s, running_s }) = (self.index.last_id + 1, self.commit_time);
        self.insert_gap(Gap { first: id, last: id, since_s: kept_s, until_s: kept_s, running_s })
    }

    /// Writes the index blocks of a full segment.
    fn seal_segment(&mut self, segment: i64) -> rusqlite::Result<()> {
        let index = &mut *self.index;
        let mut insert = self.transaction.prepare("INSERT OR REPLACE INTO block VALUES (?1, ?2)")?;
        let (names, values, sums) = index.seal();
        for (block, bucket) in account_index::encode_blocks(segment, &names).into_iter().zip(0..) {
            insert.execute(params![account_index::block_key(segment, bucket), block])?;
        }
        let sum_blocks = sum_blocks::encode(segment, &sums);
        for (key, block) in segment_filter::encode_filter(segment, &values).into_iter().chain(sum_blocks) {
            insert.execute(params![key, block])?;
        }
        if index.heads_known {
            let heads = account_index::encode_heads(segment, &index.heads);
            insert.execute(params![account_index::block_key(segment, HEADS), heads])?;
        }
        Ok(())
    }

    /// The layout's ID, or its bytes if the layout table is full.
    fn layout_value<'b>(&mut self, domains: &'b [u8]) -> rusqlite::Result<ToSqlOutput<'b>> {
        if let Some(id) = self.layouts.ids.get(domains) {
            return Ok((*id).into());
        }
        if self.layouts.ids.len() >= MAX_LAYOUTS {
            return Ok(ToSqlOutput::Borrowed(ValueRef::Blob(domains)));
        }
        self.transaction.execute("INSERT INTO layout (domains) VALUES (?1)", [domains])?;
        let id = self.transaction.last_insert_rowid();
        self.layouts.insert(id, Arc::from(domains));
        Ok(id.into())
    }
}

/// The bytes of a stored name, over which its hash is computed.
pub(super) fn name_bytes(span: ValueRef<'_>) -> &[u8] {
    match span {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes,
        _ => &[],
    }
}

/// The stored form of a span's name. The daemon generates names of 32 hexadecimal digits; they are stored as 16 bytes.
#[derive(Debug, Clone, Copy)]
pub(super) enum SpanName<'a> {
    /// Sixteen random bytes, which are unique.
    Generated([u8; 16]),
    /// Text from the client.
    Chosen(&'a str),
}

impl<'a> SpanName<'a> {
    pub fn parse(span: &'a str) -> Self {
        parse_generated(span).map_or(Self::Chosen(span), Self::Generated)
    }

    pub fn as_value(&self) -> ValueRef<'_> {
        match self {
            Self::Generated(bytes) => ValueRef::Blob(bytes),
            Self::Chosen(text) => ValueRef::Text(text.as_bytes()),
        }
    }
}

fn parse_generated(span: &str) -> Option<[u8; 16]> {
    let digits: &[u8; 32] = span.as_bytes().try_into().ok()?;
    let nibble = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(bytes)
}

/// Decodes a stored name; `None` if it is not valid.
pub(super) fn decode_span_name(stored: ValueRef<'_>) -> Option<String> {
    match stored {
        ValueRef::Text(bytes) => String::from_utf8(bytes.to_vec()).ok(),
        ValueRef::Blob(bytes) => {
            let mut digits = Vec::with_capacity(2 * bytes.len());
            append_hex(bytes, &mut digits);
            String::from_utf8(digits).ok()
        }
        _ => None,
    }
}

/// Appends bytes as hexadecimal digits.
pub(super) fn append_hex(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| DIGITS[usize::from(nibble)];
    out.extend(bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_are_stored_as_16_bytes_and_others_as_text() {
        let given = "00ff0123456789abcdef0123456789ab";
        for span in [given, "job-17", "", "00FF0123456789abcdef0123456789ab", "Frage \u{1f525}"] {
            let name = SpanName::parse(span);
            assert_eq!(matches!(name, SpanName::Generated(_)), span == given);
            assert_eq!(decode_span_name(name.as_value()).unwrap(), span);
        }
    }
}
