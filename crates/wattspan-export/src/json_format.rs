//! JSON lines: one account in each line.

use std::fs::File;
use std::io::{self, BufWriter, Write};

use wattspan_client::account::Account;

use super::columns::account_json;

pub fn write(file: &File, accounts: &[&Account], attributes: &[String]) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, file);
    for account in accounts {
        serde_json::to_writer(&mut out, &account_json(account, attributes))?;
        out.write_all(b"\n")?;
    }
    out.flush()
}
