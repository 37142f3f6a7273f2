//! The journal's compact record of the domains' clocks, and what a row of the journal needs to be extended to it.
//!
//! The record is one block of the block table, which is replaced about once a second. The bases of a row follow its
//! figures, where a reader that does not know them stops before them. Invariant: damaged bytes decode to `None`, and the
//! row's own figures then stand.

use std::collections::HashMap;

use wattspan_client::account::Account;

use super::account_record::{self, AccountIdentity, put_varint, take_byte, take_varint};
use crate::attribution::{DomainClock, ShareBasis, extend_account};

/// The key of the record in the block table, after all blocks of segments.
pub(super) const CLOCK_BLOCK: i64 = i64::MAX;

/// The flags of a basis.
const COUNTED: u8 = 1;
const PASSED_OPENING: u8 = 2;
const IDLE_KNOWN: u8 = 4;

/// The clocks of all domains at an instant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClockTick {
    /// The instant of the journal's turn, which is the end of an extended account.
    pub at_ns: u64,
    /// By domain.
    pub clocks: Vec<DomainClock>,
}

/// The record: the latest clocks, and those up to which spans are extended whose weight has changed since, or which have been
/// closed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClockRecord<'a> {
    /// The latest clocks first.
    pub ticks: Vec<&'a ClockTick>,
    /// The key of a span and the index of its clocks in `ticks`; `None`: its row is not extended.
    pub held: Vec<(u64, Option<usize>)>,
}

/// A decoded [`ClockRecord`].
#[derive(Debug, Default)]
pub(super) struct StoredClocks {
    ticks: Vec<ClockTick>,
    held: HashMap<u64, usize>,
}

impl ClockRecord<'_> {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.ticks.len() as u64);
        for tick in &self.ticks {
            put_varint(out, tick.at_ns);
            put_varint(out, tick.clocks.len() as u64);
            tick.clocks.iter().for_each(|clock| put_clock(out, clock));
        }
        put_varint(out, self.held.len() as u64);
        for (key, tick) in &self.held {
            put_varint(out, *key);
            put_varint(out, tick.map_or(0, |tick| tick as u64 + 1));
        }
    }
}

impl StoredClocks {
    /// Decodes the record; without ticks where it is not valid.
    pub(super) fn decode(mut bytes: &[u8]) -> Self {
        Self::decode_from(&mut bytes).unwrap_or_default()
    }

    fn decode_from(from: &mut &[u8]) -> Option<Self> {
        let mut stored = Self::default();
        for _ in 0..take_varint(from)? {
            let at_ns = take_varint(from)?;
            let clocks = (0..take_varint(from)?).map(|_| take_clock(from)).collect::<Option<_>>()?;
            stored.ticks.push(ClockTick { at_ns, clocks });
        }
        for _ in 0..take_varint(from)? {
            let (key, tick) = (take_varint(from)?, take_varint(from)?);
            // An index that no tick has stands for a row that is not extended.
            stored.held.insert(key, usize::try_from(tick).ok()?.wrapping_sub(1));
        }
        Some(stored)
    }

    /// The account of a journal's row, extended as far as it holds; `None` if its figures are not valid.
    pub(super) fn extended_account(
        &self,
        key: u64,
        identity: AccountIdentity<'_>,
        layout: &[u8],
        figures: &[u8],
    ) -> Option<Account> {
        let (mut account, mut rest) = account_record::decode_with_rest(identity, layout, figures)?;
        let tick = self.ticks.get(self.held.get(&key).copied().unwrap_or(0));
        if let Some((tick, bases)) = tick.zip(decode_bases(account.domains.len(), &mut rest)) {
            extend_account(&mut account, &bases, tick.at_ns, &tick.clocks);
        }
        Some(account)
    }
}

/// Appends the bases of a row after its figures; nothing if it is not to be extended.
pub(super) fn encode_bases(bases: Option<&[ShareBasis]>, out: &mut Vec<u8>) {
    for basis in bases.unwrap_or_default() {
        let counted = if basis.is_counted { COUNTED } else { 0 };
        match &basis.clock {
            None => out.push(counted),
            Some((.., is_idle_known)) => {
                out.push(counted | PASSED_OPENING | if *is_idle_known { IDLE_KNOWN } else { 0 })
            }
        }
        put_varint(out, basis.domain as u64);
        if let Some((clock, weight, _)) = &basis.clock {
            put_varint(out, *weight);
            put_clock(out, clock);
        }
    }
}

fn decode_bases(domains: usize, from: &mut &[u8]) -> Option<Vec<ShareBasis>> {
    (0..domains).map(|_| decode_basis(from)).collect()
}

fn decode_basis(from: &mut &[u8]) -> Option<ShareBasis> {
    let flags = take_byte(from)?;
    let domain = usize::try_from(take_varint(from)?).ok()?;
    let clock = if flags & PASSED_OPENING == 0 {
        None
    } else {
        let weight = take_varint(from)?;
        Some((take_clock(from)?, weight, flags & IDLE_KNOWN != 0))
    };
    Some(ShareBasis { domain, is_counted: flags & COUNTED != 0, clock })
}

fn put_clock(out: &mut Vec<u8>, clock: &DomainClock) {
    put_varint(out, (clock.g >> 64) as u64);
    out.extend((clock.g as u64).to_le_bytes());
    for number in [clock.energy, clock.idle_g, clock.covered_ns] {
        put_varint(out, number);
    }
}

fn take_clock(from: &mut &[u8]) -> Option<DomainClock> {
    let high = take_varint(from)?;
    let (low, rest) = from.split_first_chunk::<8>()?;
    *from = rest;
    Some(DomainClock {
        g: u128::from(high) << 64 | u128::from(u64::from_le_bytes(*low)),
        energy: take_varint(from)?,
        idle_g: take_varint(from)?,
        covered_ns: take_varint(from)?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::account_record::tests::account;
    use super::*;

    fn clock(at: u64) -> DomainClock {
        DomainClock { g: u128::from(at) << 50, energy: at << 40, idle_g: at << 9, covered_ns: at << 20 }
    }

    /// A row of the journal over two domains, the second of which has not passed the opening.
    fn row() -> (Account, Vec<u8>, Vec<u8>) {
        let account = account("a");
        let bases = [
            ShareBasis { domain: 3, is_counted: true, clock: Some((clock(2), 1 << 16, false)) },
            ShareBasis { domain: 0, is_counted: false, clock: None },
        ];
        let (mut layout, mut figures) = (Vec::new(), Vec::new());
        account_record::encode_layout(&account, &mut layout);
        account_record::encode_figures(&account, &mut figures);
        encode_bases(Some(&bases), &mut figures);
        (account, layout, figures)
    }

    fn ticks(closed_ns: u64) -> [ClockTick; 2] {
        let clocks = |at| vec![clock(9), clock(9), clock(9), clock(at)];
        [
            ClockTick { at_ns: closed_ns + 5_000_000, clocks: clocks(6) },
            ClockTick { at_ns: closed_ns + 2_000_000, clocks: clocks(4) },
        ]
    }

    fn extended(record: &[u8], key: u64) -> Account {
        let (account, layout, figures) = row();
        let identity = AccountIdentity { uid: account.uid, span: &account.span, name: &account.name };
        StoredClocks::decode(record).extended_account(key, identity, &layout, &figures).unwrap()
    }

    #[test]
    fn a_row_is_extended_to_the_clocks_that_hold_for_its_span() {
        let (account, ..) = row();
        let closed_ns = account.closed_ns.unwrap();
        let ticks = ticks(closed_ns);
        let record = ClockRecord {
            ticks: ticks.iter().collect(),
            held: vec![(7, Some(1)), (8, None), (u64::MAX, Some(1))],
        };
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        let share = |account: &Account| account.domains[0].share_uj.unwrap();
        // A rise of 2^50 times a weight of 2^16 is 4 µJ.
        for (key, at_ns, rise) in [(1, 5_000_000, 16), (7, 2_000_000, 8), (8, 0, 0)] {
            let extended = extended(&bytes, key);
            assert_eq!(extended.closed_ns, Some(closed_ns + at_ns), "{key}");
            assert_eq!(share(&extended) - share(&account), rise, "{key}");
            assert_eq!(extended.domains[1].unknown_ns, account.domains[1].unknown_ns + at_ns, "{key}");
        }
        for length in 0..bytes.len() {
            assert_eq!(extended(&bytes[..length], 1), Account { durable: Some(true), ..account.clone() });
        }
    }

    #[test]
    fn a_row_without_bases_keeps_its_figures() {
        let (account, layout, figures) = row();
        let ticks = ticks(account.closed_ns.unwrap());
        let mut bytes = Vec::new();
        ClockRecord { ticks: ticks.iter().collect(), held: Vec::new() }.encode(&mut bytes);
        let identity = AccountIdentity { uid: account.uid, span: &account.span, name: &account.name };
        let mut plain = Vec::new();
        account_record::encode_figures(&account, &mut plain);
        for length in plain.len()..figures.len() {
            let stored = StoredClocks::decode(&bytes);
            let read = stored.extended_account(1, identity, &layout, &figures[..length]).unwrap();
            assert_eq!(read, Account { durable: Some(true), ..account.clone() }, "{length}");
        }
    }
}
