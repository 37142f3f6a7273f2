//! A final account as it goes over the wire, without a copy of it.
//!
//! Owns nothing but the words around the account.

use serde::Serialize;

use crate::ledger::account::Account;
use crate::protocol::Reply;

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
