//! Stub of `parquet_format` for builds without the cargo feature `parquet`.

use std::fs::File;
use std::io;

use wattspan_client::account::Account;

use super::columns::Column;

/// Whether this build writes Parquet.
pub const IS_SUPPORTED: bool = false;

pub fn write(_: &File, _: &[&Account], _: &[String]) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

pub fn write_rows<T>(_: &File, _: &[Column<T>], _: &[T]) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
