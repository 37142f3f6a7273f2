//! The `before` cursors of ListSpans: the account number, encrypted for callers that see one user's accounts only.

use wattspan_client::protocol::MethodError;

use super::access::Peer;
use crate::store::PositionCipher;

/// The cursors of this process: its key is new at each start.
pub(crate) struct CursorCipher {
    cipher: PositionCipher,
}

impl Default for CursorCipher {
    fn default() -> Self {
        Self { cipher: PositionCipher::random() }
    }
}

impl CursorCipher {
    /// The cursor of the page that ends before the account of this number. A peer that sees all users' accounts gets the
    /// plain number.
    pub fn encode(&self, peer: &Peer, store_number: u64) -> u64 {
        peer.uid_filter().map_or(store_number, |uid| self.cipher.encrypt(uid, store_number))
    }

    /// The account number in a cursor.
    ///
    /// # Errors
    /// `InvalidValue`: the cursor was not made for this peer since the daemon started.
    pub fn decode(&self, peer: &Peer, cursor: i64) -> Result<u64, MethodError> {
        let invalid =
            |reason: &str| MethodError::InvalidValue { field: "before".into(), reason: reason.to_owned() };
        let cursor = u64::try_from(cursor).map_err(|_| invalid("is negative; omit it for all accounts"))?;
        let store_number = peer.uid_filter().map_or(Some(cursor), |uid| self.cipher.decrypt(uid, cursor));
        let reason = "was not returned to this user since the daemon started; list again without it";
        store_number.ok_or_else(|| invalid(reason))
    }
}
