//! The identity of a database: its UUID, to which the numbers of accounts belong, and the key of positions in it.
//!
//! Stored as one block of the block table. A database without one, or with a damaged one, gets a new identity: clients then
//! begin again instead of continuing at a number that may name another account.

use std::fmt;

use rusqlite::{Connection, params};

use super::account_index;
use super::position_cipher::PositionCipher;
use super::schema::DatabaseError;
use super::segment_filter;

/// The key in the block table, after all blocks of segments.
const IDENTITY_BLOCK: i64 = i64::MAX - 127;

const UUID_BYTES: usize = 16;
const BLOCK_BYTES: usize = UUID_BYTES + 16;

/// The UUID of a database: version 4, random (RFC 9562).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DatabaseId([u8; UUID_BYTES]);

impl DatabaseId {
    /// Parses the form that `Display` writes.
    pub fn parse(text: &str) -> Option<Self> {
        let digits: String = text.chars().filter(|digit| *digit != '-').collect();
        let id = Self(u128::from_str_radix(&digits, 16).ok()?.to_be_bytes());
        (id.to_string() == text).then_some(id)
    }
}

impl fmt::Display for DatabaseId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = format!("{:032x}", u128::from_be_bytes(self.0));
        let group = |from: usize, to: usize| &digits[from..to];
        write!(out, "{}-{}-{}-{}-{}", group(0, 8), group(8, 12), group(12, 16), group(16, 20), group(20, 32))
    }
}

/// The stored identity.
#[derive(Debug, Clone, Copy)]
pub(super) struct DatabaseIdentity {
    pub id: DatabaseId,
    pub cipher: PositionCipher,
}

impl DatabaseIdentity {
    /// Reads the identity; creates it if there is none.
    pub fn load_or_create(connection: &Connection) -> Result<Self, DatabaseError> {
        let mut statement = connection.prepare("SELECT bytes FROM block WHERE id = ?1")?;
        let sound = segment_filter::read_block(&mut statement, IDENTITY_BLOCK)?;
        if let Some(block) = sound.and_then(|block| block.as_slice().try_into().ok()) {
            return Ok(Self::decode(block));
        }
        let mut block = connection.query_row("SELECT randomblob(32)", [], |row| row.get::<_, Vec<u8>>(0))?;
        block[6] = block[6] & 0x0f | 0x40;
        block[8] = block[8] & 0x3f | 0x80;
        let identity = Self::decode(std::array::from_fn(|at| block[at]));
        let block = account_index::append_checksum(IDENTITY_BLOCK, block);
        connection.execute("INSERT OR REPLACE INTO block VALUES (?1, ?2)", params![IDENTITY_BLOCK, block])?;
        Ok(identity)
    }

    fn decode(block: [u8; BLOCK_BYTES]) -> Self {
        let half = |from: usize| u64::from_le_bytes(std::array::from_fn(|at| block[from + at]));
        Self {
            id: DatabaseId(std::array::from_fn(|at| block[at])),
            cipher: PositionCipher::new([half(UUID_BYTES), half(UUID_BYTES + 8)]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE block (id INTEGER PRIMARY KEY, bytes BLOB NOT NULL)").unwrap();
        connection
    }

    #[test]
    fn the_identity_stays_and_another_database_has_another() {
        let connection = database();
        let first = DatabaseIdentity::load_or_create(&connection).unwrap();
        let again = DatabaseIdentity::load_or_create(&connection).unwrap();
        assert_eq!((first.id, first.cipher), (again.id, again.cipher));
        let other = DatabaseIdentity::load_or_create(&database()).unwrap();
        assert!(other.id != first.id && other.cipher != first.cipher);
    }

    #[test]
    fn a_damaged_identity_is_replaced() {
        let connection = database();
        let first = DatabaseIdentity::load_or_create(&connection).unwrap();
        connection.execute("UPDATE block SET bytes = zeroblob(36)", []).unwrap();
        assert_ne!(DatabaseIdentity::load_or_create(&connection).unwrap().id, first.id);
    }

    #[test]
    fn a_uuid_has_version_4_and_reads_back() {
        let text = DatabaseIdentity::load_or_create(&database()).unwrap().id.to_string();
        assert_eq!((text.len(), &text[14..15], text.matches('-').count()), (36, "4", 4), "{text}");
        assert!("89ab".contains(&text[19..20]), "{text}");
        assert_eq!(DatabaseId::parse(&text).unwrap().to_string(), text);
        for bad in ["", "x", &text[1..], &text.to_uppercase().replace('-', "")] {
            assert_eq!(DatabaseId::parse(bad), None, "{bad}");
        }
    }
}
