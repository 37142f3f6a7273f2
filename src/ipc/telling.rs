//! What is told without being asked for at that moment: awaited answers, and the streams' next ones.
//!
//! Owns their bytes on the wire, made once for however many are told.

use serde::Serialize;

use crate::ledger::account::Account;
use crate::protocol::{DomainTick, Reply};

/// A final account on the wire, without a copy.
#[derive(Serialize)]
struct Told<'a> {
    account: &'a Account,
}

/// The answer to a close that waited.
pub fn answer(account: &Account) -> Vec<u8> {
    let mut bytes = Vec::new();
    Reply::last(Told { account }).write(&mut bytes);
    bytes
}

/// One more settled account.
pub fn span(account: &Account) -> Vec<u8> {
    let mut bytes = Vec::new();
    Reply::one_of_many(Told { account }).write(&mut bytes);
    bytes
}

/// The domains once more.
pub fn domains(tick: &DomainTick) -> Vec<u8> {
    let mut bytes = Vec::new();
    Reply::one_of_many(tick).write(&mut bytes);
    bytes
}
