//! The formats of the files.

use std::fs::File;
use std::io;

use wattspan_client::account::Account;

use super::balance::{BALANCE_COLUMNS, BalanceRow};
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

    /// Writes a file with these attributes of the accounts.
    pub(crate) fn write(self, file: &File, accounts: &[&Account], attributes: &[String]) -> io::Result<()> {
        match self {
            ExportFormat::Jsonl => json_format::write(file, accounts, attributes),
            ExportFormat::Csv => csv_format::write(file, accounts, attributes),
            ExportFormat::Parquet => parquet_format::write(file, accounts, attributes),
            ExportFormat::Trace => trace_format::write(file, accounts, attributes),
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
