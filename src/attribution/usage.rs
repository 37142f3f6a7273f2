//! The looks at one basis: how much everything, and how much each subject, used between two of them.
//!
//! Owns the pieces of time between looks. Invariant: in each piece what subjects with nothing in common used is at most
//! the piece's total, so that their parts of anything are never more than the whole. Counters of use come in ticks (10 ms
//! for the machine, nanoseconds for a process): where the machine's shows less than its processes did, they are believed.

use std::collections::VecDeque;

use super::portion::part_of;

/// Pieces that are kept at most, where a domain's counter stands still for long.
const MOST: usize = 4096;

#[derive(Debug, Clone, Copy)]
struct Piece {
    from_ns: u64,
    to_ns: u64,
    /// What everything used; 0 where that is nothing or not known.
    total: u64,
}

/// One basis.
#[derive(Debug, Default)]
pub(crate) struct Basis {
    last: Option<(u64, Option<u64>)>,
    first: u64,
    pieces: VecDeque<Piece>,
}

/// What one subject used of one basis.
#[derive(Debug, Default)]
pub(crate) struct Uses {
    last: Option<u64>,
    first: u64,
    pieces: VecDeque<u64>,
    known_since_ns: Option<u64>,
    /// From the first time for which nobody knows to the end of the last.
    unknown: Option<(u64, u64)>,
    looked_ns: u64,
}

impl Basis {
    /// The number of the piece that the next look ends.
    pub(crate) fn next(&self) -> u64 {
        self.first + self.pieces.len() as u64
    }

    /// When it was last looked at.
    pub(crate) fn last_ns(&self) -> Option<u64> {
        Some(self.pieces.back()?.to_ns)
    }

    /// Twice the time between the last two looks.
    pub(crate) fn longest_ns(&self) -> u64 {
        self.pieces.back().map_or(0, |last| 2 * (last.to_ns - last.from_ns))
    }

    /// A look: everything used `busy` so far, and since the look before the subjects at least `least`.
    pub(crate) fn look(&mut self, at_ns: u64, busy: Option<u64>, least: u64) {
        let (from_ns, before) = self.last.unwrap_or((at_ns, None));
        let rise = busy.zip(before).map_or(0, |(now, before)| now.saturating_sub(before));
        let total = if busy.is_some() && before.is_some() { rise.max(least) } else { 0 };
        self.last = Some((at_ns.max(from_ns), busy));
        self.pieces.push_back(Piece { from_ns, to_ns: at_ns.max(from_ns), total });
        if self.pieces.len() > MOST {
            self.pieces.pop_front();
            self.first += 1;
        }
    }

    /// Of energy that flowed evenly over `row`, the subject's part up to `to_ns`, rounded down, and how many times it was.
    pub(crate) fn flow_to(&self, uses: &Uses, row: (u64, u64), to_ns: u64, energy: u128) -> (u128, u128) {
        let length_ns = row.1.saturating_sub(row.0);
        let begin = self.pieces.partition_point(|piece| piece.to_ns <= row.0);
        let (mut sum, mut rounded) = (0, 0);
        for (number, piece) in self.pieces.iter().enumerate().skip(begin) {
            let (from_ns, end_ns) = (piece.from_ns.max(row.0), piece.to_ns.min(to_ns).min(row.1));
            if piece.from_ns >= to_ns {
                break;
            }
            let used = uses.of(self.first + number as u64);
            if used == 0 || piece.total == 0 || end_ns <= from_ns {
                continue;
            }
            let energy =
                part_of(energy, end_ns - row.0, length_ns) - part_of(energy, from_ns - row.0, length_ns);
            sum += energy.saturating_mul(u128::from(used.min(piece.total))) / u128::from(piece.total);
            rounded += 1;
        }
        (sum, rounded)
    }

    /// The subject's part in the piece that is nearest to an instant.
    pub(crate) fn nearest(&self, uses: &Uses, at_ns: u64) -> Option<(u128, u128)> {
        let place =
            self.pieces.partition_point(|piece| piece.to_ns <= at_ns).min(self.pieces.len().checked_sub(1)?);
        let (piece, used) = (self.pieces.get(place)?, uses.of(self.first + place as u64));
        Some((u128::from(used.min(piece.total)), u128::from(piece.total.max(1))))
    }

    /// Forgets the pieces that end before this instant; gives the number of the first that is left.
    pub(crate) fn forget(&mut self, before_ns: u64) -> u64 {
        while self.pieces.len() > 1 && self.pieces.front().is_some_and(|piece| piece.to_ns < before_ns) {
            self.pieces.pop_front();
            self.first += 1;
        }
        self.first
    }
}

impl Uses {
    /// The subject has used this much so far; gives what it used since the look before. `piece` is the number of the
    /// piece that this look ends.
    pub(crate) fn note(&mut self, piece: u64, at_ns: u64, used: Option<u64>) -> u64 {
        let rise = match (self.last, used) {
            (Some(before), Some(now)) => now.saturating_sub(before),
            _ => 0,
        };
        if self.known_since_ns.is_none() {
            self.known_since_ns = used.map(|_| at_ns);
        } else if used.is_none() || self.last.is_none() {
            // From the look before until this one nobody knows.
            let from_ns = self.unknown.map_or(self.looked_ns, |(from_ns, _)| from_ns);
            self.unknown = Some((from_ns, at_ns));
        }
        self.last = used;
        self.looked_ns = at_ns;
        if self.pieces.is_empty() {
            self.first = piece;
        }
        while self.first + (self.pieces.len() as u64) < piece {
            self.pieces.push_back(0);
        }
        self.pieces.push_back(rise);
        let surplus = self.pieces.len().saturating_sub(MOST);
        self.forget(self.first + surplus as u64);
        rise
    }

    /// Since when its use is known without a break up to `to_ns`, as seen from `from_ns`; `None` where it is not.
    pub(crate) fn known_since_ns(&self, from_ns: u64, to_ns: u64) -> Option<u64> {
        let broken = self.unknown.is_some_and(|unknown| unknown.0 < to_ns && from_ns < unknown.1);
        self.known_since_ns.filter(|_| !broken && self.last.is_some())
    }

    fn of(&self, piece: u64) -> u64 {
        piece.checked_sub(self.first).and_then(|place| self.pieces.get(place as usize)).copied().unwrap_or(0)
    }

    /// Forgets what it used before the piece of this number.
    pub(crate) fn forget(&mut self, piece: u64) {
        let gone = piece.saturating_sub(self.first).min(self.pieces.len() as u64);
        self.pieces.drain(..gone as usize);
        self.first += gone;
    }
}
