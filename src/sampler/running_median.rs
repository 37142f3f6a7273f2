//! The last few values of something, and the one in their middle.
//!
//! Owns a fixed window: constant memory, and a median that one wild value does not move. Never allocates.

/// How many values are remembered.
const WINDOW: usize = 32;

/// The last 32 values.
#[derive(Debug, Clone, Default)]
pub(super) struct RunningMedian {
    values: [u64; WINDOW],
    /// At most [`WINDOW`].
    len: usize,
    /// Where the next value goes; less than [`WINDOW`].
    next: usize,
    median: Option<u64>,
}

impl RunningMedian {
    /// Remembers a value in place of the oldest.
    pub(super) fn push(&mut self, value: u64) {
        self.values[self.next] = value;
        self.next = (self.next + 1) % WINDOW;
        self.len = (self.len + 1).min(WINDOW);
        let mut ordered = self.values;
        let (_, &mut median, _) = ordered[..self.len].select_nth_unstable(self.len / 2);
        self.median = Some(median);
    }

    /// The value in the middle (the upper of two); `None` while there is none.
    pub(super) fn median(&self) -> Option<u64> {
        self.median
    }

    /// How many values are remembered.
    pub(super) fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: impl IntoIterator<Item = u64>) -> RunningMedian {
        let mut window = RunningMedian::default();
        values.into_iter().for_each(|value| window.push(value));
        window
    }

    #[test]
    fn an_empty_window_has_no_median() {
        assert_eq!((of([]).median(), of([]).len()), (None, 0));
    }

    #[test]
    fn one_outlier_does_not_move_the_median() {
        assert_eq!(of([10, 11, 9, u64::MAX, 10]).median(), Some(10));
    }

    #[test]
    fn the_oldest_values_are_forgotten() {
        let window = of([1; 100].into_iter().chain([7; 17]));
        assert_eq!((window.median(), window.len()), (Some(7), 32));
    }
}
