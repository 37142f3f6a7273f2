//! The most spans that were open at once since any instant of the past.
//!
//! Owns the count's suffix maxima: a stack of (since, count) with counts falling, so that an update costs constant
//! time on average and a question a binary search. Invariant: at or after `since`, and until the next entry's, the
//! maximum from there to now is `count`.

/// The number of open spans and its suffix maxima.
#[derive(Debug, Default)]
pub(crate) struct PeakConcurrency {
    open: u32,
    peaks: Vec<(u64, u32)>,
}

impl PeakConcurrency {
    /// At `at_ns` the number of open spans became `open + opened - closed`.
    pub(crate) fn update(&mut self, at_ns: u64, opened: u32, closed: u32) {
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
    pub(crate) fn peak_since(&self, since_ns: u64) -> u32 {
        let index = self.peaks.partition_point(|&(since, _)| since <= since_ns);
        self.peaks.get(index.saturating_sub(1)).map_or(0, |&(_, count)| count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_the_most_open_at_once_since_then() {
        let mut concurrency = PeakConcurrency::default();
        concurrency.update(10, 1, 0);
        concurrency.update(20, 2, 0);
        concurrency.update(30, 0, 2);
        concurrency.update(40, 1, 0);
        assert_eq!(concurrency.peak_since(10), 3);
        assert_eq!(concurrency.peak_since(25), 3);
        assert_eq!(concurrency.peak_since(30), 2);
        assert_eq!(concurrency.peak_since(40), 2);
    }

    #[test]
    fn the_peak_agrees_with_the_maximum_of_the_whole_history() {
        let mut concurrency = PeakConcurrency::default();
        let mut history: Vec<(u64, u32)> = Vec::new();
        let (mut open, mut seed, mut empty) = (0_u32, 7_u64, 0);
        for at in (0..3000).step_by(3) {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let up = (seed >> 33) % 2 == 0 || open == 0;
            concurrency.update(at, u32::from(up), u32::from(!up));
            open = if up { open + 1 } else { open - 1 };
            history.push((at, open));
            if open == 0 {
                // No open span needs the time before.
                empty = at + 1;
                continue;
            }
            let since = empty + (seed >> 40) % (at + 1 - empty);
            let begin = history.partition_point(|h| h.0 <= since).saturating_sub(1);
            let expected = history[begin..].iter().map(|h| h.1).max().unwrap();
            assert_eq!(concurrency.peak_since(since), expected, "since {since} at {at}");
        }
    }
}
