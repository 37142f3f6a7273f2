//! Which choices of a reply have appeared, and which have finished.

/// The choices of a reply, one bit each. A stream has several choices interleaved or one after the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChoiceProgress {
    seen: u128,
    finished: u128,
    /// A choice has an index beyond 127 or an invalid one.
    has_untracked: bool,
}

impl ChoiceProgress {
    /// Records that a choice appeared, or finished; one of no valid index stays open.
    pub fn record(&mut self, index: Option<u32>, is_finished: bool) {
        match index.and_then(|index| 1_u128.checked_shl(index)) {
            Some(bit) => {
                self.seen |= bit;
                self.finished |= if is_finished { bit } else { 0 };
            }
            None => self.has_untracked = true,
        }
    }

    /// Whether all choices that have appeared have finished, and at least one has.
    pub fn is_finished(self) -> bool {
        !self.has_untracked && self.seen == self.finished && self.seen != 0
    }
}
