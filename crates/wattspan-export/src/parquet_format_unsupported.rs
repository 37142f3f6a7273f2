//! Stub of `parquet_format` for builds without the cargo feature `parquet`.

use std::fs::File;
use std::io;

use wattspan_client::account::Account;

use super::columns::Column;

/// Whether this build writes Parquet.
pub const IS_SUPPORTED: bool = false;

/// Without a file that could take them.
#[derive(Debug)]
pub struct ColumnRows {
    count: usize,
}

impl ColumnRows {
    pub fn new(_: &[String]) -> Self {
        Self { count: 0 }
    }

    pub fn push(&mut self, _: &Account, _: &[String]) -> usize {
        self.count += 1;
        0
    }

    pub fn len(&self) -> usize {
        self.count
    }
}

/// Cannot be made.
pub enum ColumnFile {}

impl ColumnFile {
    pub fn new(_: &[String]) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub fn append(&mut self, _: ColumnRows) -> io::Result<()> {
        match *self {}
    }

    pub fn finish(self, _: &File) -> io::Result<()> {
        match self {}
    }
}

pub fn write_rows<T>(_: &File, _: &[Column<T>], _: &[T]) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
