//! The formats of the files.

use std::fs::File;
use std::io;

use wattspan_client::account::Account;

use super::balance::{BALANCE_COLUMNS, BalanceRow};
use super::columns::without_others;
use super::parquet_format::{ColumnFile, ColumnRows};
use super::{csv_format, json_format, parquet_format, trace_format};

/// The attributes that are exported where the user names no others: they contain no text of a prompt and no user's name.
pub const DEFAULT_ATTRIBUTES: [&str; 5] = [
    "gen_ai.request.model",
    "gen_ai.response.model",
    "gen_ai.operation.name",
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.output_tokens",
];

/// A file format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportFormat {
    /// One JSON object in each line.
    Jsonl,
    /// Comma-separated values with a header (RFC 4180).
    Csv,
    /// Apache Parquet.
    Parquet,
    /// Chrome's JSON trace of spans and power, which Perfetto shows.
    Trace,
}

impl ExportFormat {
    /// The ending of the files' names.
    pub fn extension(self) -> &'static str {
        match self {
            ExportFormat::Jsonl => "jsonl",
            ExportFormat::Csv => "csv",
            ExportFormat::Parquet => "parquet",
            ExportFormat::Trace => "trace.json",
        }
    }

    /// Why this build cannot write the format, if it cannot.
    pub fn missing_feature(self) -> Option<&'static str> {
        match self {
            ExportFormat::Parquet if !parquet_format::IS_SUPPORTED => Some(
                "this build has no Parquet; use jsonl or csv, or build with: cargo build --features parquet",
            ),
            _ => None,
        }
    }

    /// The most that a new range has.
    pub(crate) fn range_limits(self) -> RangeLimits {
        match self {
            // Encoded as they are read, and about 16 MB then: the end of a file, and two waits for the disk, serve many.
            ExportFormat::Parquet => RangeLimits { accounts: 262_144, replies: 512, text_bytes: 64 << 20 },
            _ => RangeLimits { accounts: 32_768, replies: 64, text_bytes: 64 << 20 },
        }
    }

    /// No accounts yet.
    pub(crate) fn rows(self, attributes: &[String]) -> AccountRows {
        match self {
            ExportFormat::Parquet => AccountRows::Columns(ColumnRows::new(attributes)),
            _ => AccountRows::Accounts(Vec::new()),
        }
    }

    /// The content of a file without accounts yet.
    pub(crate) fn content(self, attributes: &[String]) -> io::Result<FileContent> {
        Ok(match self {
            ExportFormat::Parquet => FileContent::Columns(Box::new(ColumnFile::new(attributes)?)),
            _ => FileContent::Accounts(Vec::new()),
        })
    }

    /// Writes a file with these attributes of the accounts.
    pub(crate) fn write(self, file: &File, content: FileContent, attributes: &[String]) -> io::Result<()> {
        let accounts = match content {
            FileContent::Columns(columns) => return columns.finish(file),
            FileContent::Accounts(accounts) => accounts,
        };
        match self {
            ExportFormat::Jsonl => json_format::write(file, &accounts, attributes),
            ExportFormat::Csv => csv_format::write(file, &accounts, attributes),
            ExportFormat::Trace => trace_format::write(file, &accounts, attributes),
            ExportFormat::Parquet => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// Whether the format has tables, and so a balance.
    pub(crate) fn has_balance(self) -> bool {
        !matches!(self, ExportFormat::Trace)
    }

    /// Writes a file with these rows of a balance.
    pub(crate) fn write_balance(self, file: &File, rows: &[BalanceRow]) -> io::Result<()> {
        match self {
            ExportFormat::Jsonl => json_format::write_rows(file, BALANCE_COLUMNS, rows),
            ExportFormat::Csv => csv_format::write_rows(file, BALANCE_COLUMNS, rows),
            ExportFormat::Parquet => parquet_format::write_rows(file, BALANCE_COLUMNS, rows),
            ExportFormat::Trace => Ok(()),
        }
    }
}

/// The most that a range has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RangeLimits {
    /// The number of accounts; the last reply may exceed it.
    pub accounts: u64,
    /// The number of replies. A reply has at most about 1 MB, so that long accounts do not fill the memory.
    pub replies: u64,
    /// The bytes of the texts that are exported.
    pub text_bytes: usize,
}

/// Some accounts of one partition, in the form that the format needs.
#[derive(Debug)]
pub(crate) enum AccountRows {
    Accounts(Vec<Account>),
    Columns(ColumnRows),
}

impl AccountRows {
    /// Adds an account, without the attributes that are not exported; returns the bytes of its texts.
    pub fn push(&mut self, account: Account, attributes: &[String]) -> usize {
        match self {
            AccountRows::Columns(columns) => columns.push(&account, attributes),
            AccountRows::Accounts(accounts) => {
                let account = without_others(account, attributes);
                let texts = account.attributes.values().map(String::len).sum::<usize>();
                let bytes = account.span.len() + account.name.len() + texts;
                accounts.push(account);
                bytes
            }
        }
    }

    pub fn len(&self) -> usize {
        match self {
            AccountRows::Accounts(accounts) => accounts.len(),
            AccountRows::Columns(columns) => columns.len(),
        }
    }
}

/// The accounts of a file.
pub(crate) enum FileContent {
    Accounts(Vec<Account>),
    Columns(Box<ColumnFile>),
}

impl FileContent {
    pub fn append(&mut self, rows: AccountRows) -> io::Result<()> {
        match (self, rows) {
            (FileContent::Accounts(all), AccountRows::Accounts(accounts)) => all.extend(accounts),
            (FileContent::Columns(file), AccountRows::Columns(columns)) => file.append(columns)?,
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        }
        Ok(())
    }
}
