//! What is told without being asked for at that moment: awaited answers, and the streams' next ones.
//!
//! Owns their bytes on the wire, made once for however many are told, and without a copy of an account.

use serde::Serialize;

use crate::attribution::account::Account;
use crate::protocol::{DomainSnapshot, MethodReply};

#[derive(Serialize)]
struct AccountReply<'a> {
    account: &'a Account,
}

/// The answer to one call.
pub fn account_reply(account: &Account) -> Vec<u8> {
    let mut reply = Vec::new();
    MethodReply::last(AccountReply { account }).encode(&mut reply);
    reply
}

/// One answer of many.
pub fn account_stream_item(account: &Account) -> Vec<u8> {
    let mut reply = Vec::new();
    MethodReply::continued(AccountReply { account }).encode(&mut reply);
    reply
}

/// The domains once more.
pub fn domain_stream_item(tick: &DomainSnapshot) -> Vec<u8> {
    let mut reply = Vec::new();
    MethodReply::continued(tick).encode(&mut reply);
    reply
}
