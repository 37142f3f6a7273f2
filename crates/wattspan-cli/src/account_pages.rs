//! Lists of accounts, fetched page by page.

use wattspan_client::account::Account;
use wattspan_client::protocol::{ListSpans, MethodError};
use wattspan_client::{Client, ClientError};

/// The next part of a list.
pub enum AccountPage {
    /// The latest first.
    Accounts(Vec<Account>),
    /// Accounts are missing here, with the reason. Older ones follow.
    Damaged(String),
}

/// The pages of a list, the latest first.
pub struct AccountPages<'a> {
    client: &'a Client,
    request: ListSpans,
    is_at_end: bool,
}

impl<'a> AccountPages<'a> {
    /// The pages of the accounts that `request` selects.
    pub fn new(client: &'a Client, request: ListSpans) -> Self {
        AccountPages { client, request, is_at_end: false }
    }

    /// Whether the last page was fetched.
    pub fn is_at_end(&self) -> bool {
        self.is_at_end
    }

    /// Fetches the next page, of at most `limit` accounts; `None` after the last one.
    pub fn fetch(&mut self, limit: usize) -> Result<Option<AccountPage>, ClientError> {
        if self.is_at_end {
            return Ok(None);
        }
        self.request.limit = Some(i64::try_from(limit).unwrap_or(i64::MAX));
        let (page, before) = match self.client.call(self.request.clone()) {
            Err(ClientError::Method(MethodError::StoreDamaged { reason, before: Some(before) })) => {
                (AccountPage::Damaged(reason), Some(before))
            }
            reply => {
                let reply = reply?;
                (AccountPage::Accounts(reply.accounts.into_iter().rev().collect()), reply.before)
            }
        };
        self.request.before = before.map(|before| i64::try_from(before).unwrap_or(i64::MAX));
        self.is_at_end = before.is_none();
        Ok(Some(page))
    }
}
