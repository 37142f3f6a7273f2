//! JSON lines: one account in each line.

use std::fs::File;
use std::io::{self, BufWriter, Write};

use wattspan_client::account::Account;

use super::columns::{Column, account_json, row_json};

pub fn write(file: &File, accounts: &[Account], attributes: &[String]) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, file);
    for account in accounts {
        serde_json::to_writer(&mut out, &account_json(account, attributes))?;
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// Writes rows without attributes.
pub fn write_rows<T>(file: &File, columns: &[Column<T>], rows: &[T]) -> io::Result<()> {
    let mut out = BufWriter::new(file);
    for row in rows {
        serde_json::to_writer(&mut out, &row_json(columns, row))?;
        out.write_all(b"\n")?;
    }
    out.flush()
}
