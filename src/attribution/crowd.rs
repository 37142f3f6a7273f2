//! The most spans that were open at once since any instant of the past.
//!
//! Owns the count's suffix maxima: a stack of (since, count) with counts falling, so that an update costs constant
//! time on average and a question a binary search. Invariant: at or after `since`, and until the next entry's, the
//! maximum from there to now is `count`.

/// The crowd.
#[derive(Debug, Default)]
pub(crate) struct Crowd {
    open: u32,
    peaks: Vec<(u64, u32)>,
}

impl Crowd {
    /// At `at_ns` the number of open spans became `open + opened - closed`.
    pub(crate) fn change(&mut self, at_ns: u64, opened: u32, closed: u32) {
        self.open = (self.open + opened).saturating_sub(closed);
        let mut since = at_ns;
        while let Some(&(earlier, count)) = self.peaks.last() {
            if count > self.open {
                break;
            }
            since = earlier;
            self.peaks.pop();
        }
        if self.open > 0 {
            self.peaks.push((since, self.open));
        } else {
            self.peaks.clear();
        }
    }

    /// Gives memory back that many peaks took.
    pub(crate) fn shrink(&mut self) {
        self.peaks.shrink_to(64);
    }

    /// The most spans open at once between `since_ns` and now.
    pub(crate) fn peak(&self, since_ns: u64) -> u32 {
        let behind = self.peaks.partition_point(|&(since, _)| since <= since_ns);
        self.peaks.get(behind.saturating_sub(1)).map_or(0, |&(_, count)| count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_the_most_open_at_once_since_then() {
        let mut crowd = Crowd::default();
        crowd.change(10, 1, 0);
        crowd.change(20, 2, 0);
        crowd.change(30, 0, 2);
        crowd.change(40, 1, 0);
        assert_eq!(crowd.peak(10), 3);
        assert_eq!(crowd.peak(25), 3);
        assert_eq!(crowd.peak(30), 2);
        assert_eq!(crowd.peak(40), 2);
    }

    #[test]
    fn it_agrees_with_a_walk_over_the_whole_history() {
        let mut crowd = Crowd::default();
        let mut history: Vec<(u64, u32)> = Vec::new();
        let (mut open, mut seed, mut empty) = (0_u32, 7_u64, 0);
        for at in (0..3000).step_by(3) {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let up = (seed >> 33) % 2 == 0 || open == 0;
            crowd.change(at, u32::from(up), u32::from(!up));
            open = if up { open + 1 } else { open - 1 };
            history.push((at, open));
            if open == 0 {
                // Nobody is left to ask about the time before.
                empty = at + 1;
                continue;
            }
            let since = empty + (seed >> 40) % (at + 1 - empty);
            let begin = history.partition_point(|h| h.0 <= since).saturating_sub(1);
            let walked = history[begin..].iter().map(|h| h.1).max().unwrap();
            assert_eq!(crowd.peak(since), walked, "since {since} at {at}");
        }
    }
}
