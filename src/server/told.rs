//! What is told without being asked for at that moment: awaited answers, and the streams' next ones.
//!
//! Owns their bytes on the wire, made once for however many are told, and without a copy of an account.

use serde::Serialize;

use crate::attribution::account::Account;
use crate::protocol::{DomainTick, Reply};

#[derive(Serialize)]
struct Told<'a> {
    account: &'a Account,
}

/// The answer to one call.
pub fn once(account: &Account) -> Vec<u8> {
    let mut answer = Vec::new();
    Reply::last(Told { account }).write(&mut answer);
    answer
}

/// One answer of many.
pub fn again(account: &Account) -> Vec<u8> {
    let mut answer = Vec::new();
    Reply::one_of_many(Told { account }).write(&mut answer);
    answer
}

/// The domains once more.
pub fn domains(tick: &DomainTick) -> Vec<u8> {
    let mut answer = Vec::new();
    Reply::one_of_many(tick).write(&mut answer);
    answer
}
