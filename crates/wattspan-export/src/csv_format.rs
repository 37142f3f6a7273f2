//! Comma-separated values: a column for each attribute, and the shares of the domains as JSON in the last one.

use std::fs::File;
use std::io::{self, BufWriter, Write};

use wattspan_client::account::Account;

use super::columns::{ACCOUNT_COLUMNS, Cell, Column, attribute, shares_json};

pub fn write(file: &File, accounts: &[Account], attributes: &[String]) -> io::Result<()> {
    let mut out = csv::Writer::from_writer(BufWriter::with_capacity(1 << 20, file));
    let names = ACCOUNT_COLUMNS.iter().map(|(name, ..)| *name);
    out.write_record(names.chain(attributes.iter().map(String::as_str)).chain(["domains"]))?;
    for account in accounts {
        for (_, _, value) in ACCOUNT_COLUMNS {
            out.write_field(field(&value(account)))?;
        }
        for key in attributes {
            out.write_field(attribute(account, key).unwrap_or_default())?;
        }
        out.write_field(shares_json(account).to_string())?;
        out.write_record(None::<&[u8]>)?;
    }
    out.into_inner().map_err(|error| error.into_error())?.flush()
}

/// Writes rows without attributes.
pub fn write_rows<T>(file: &File, columns: &[Column<T>], rows: &[T]) -> io::Result<()> {
    let mut out = csv::Writer::from_writer(BufWriter::new(file));
    out.write_record(columns.iter().map(|(name, ..)| *name))?;
    for row in rows {
        out.write_record(columns.iter().map(|(_, _, value)| field(&value(row))))?;
    }
    out.into_inner().map_err(|error| error.into_error())?.flush()
}

/// An absent value is an empty field.
fn field(cell: &Cell<'_>) -> String {
    match cell {
        Cell::Absent => String::new(),
        Cell::Integer(value) => value.to_string(),
        Cell::Number(value) => value.to_string(),
        Cell::Flag(value) => value.to_string(),
        Cell::Text(value) => (*value).to_owned(),
    }
}
