//! The power of each domain over the last hour, and its picture in braille characters.
//!
//! A character holds two columns of four dots. Samples that are unknown leave a gap.

use std::collections::{BTreeMap, VecDeque};

/// Samples that are kept: an hour at two a second.
const MAX_SAMPLES: usize = 7_200;

/// Samples of one column of dots, at each step of the zoom: 0.5 s to 30 s at two samples a second.
pub const ZOOM_STEPS: [usize; 6] = [1, 2, 4, 10, 20, 60];

/// Samples of every domain, all of the same length.
#[derive(Debug, Default)]
pub struct PowerHistory {
    samples: BTreeMap<String, VecDeque<Option<u64>>>,
    /// The number of samples ever added, so that groups of samples keep their borders while the picture moves.
    added: usize,
}

impl PowerHistory {
    /// Adds one sample of each domain; a domain that is not in the list has an unknown one.
    pub fn push(&mut self, powers_mw: &[(&str, Option<u64>)]) {
        for (name, _) in powers_mw {
            if !self.samples.contains_key(*name) {
                let length = self.added.min(MAX_SAMPLES);
                self.samples.insert((*name).to_owned(), std::iter::repeat_n(None, length).collect());
            }
        }
        for (name, samples) in &mut self.samples {
            if samples.len() == MAX_SAMPLES {
                samples.pop_front();
            }
            let power_mw = powers_mw.iter().find(|(other, _)| other == name).and_then(|(_, power)| *power);
            samples.push_back(power_mw);
        }
        // Domains that are gone leave with their last sample.
        self.samples.retain(|_, samples| samples.iter().any(Option::is_some));
        self.added += 1;
    }

    /// The mean power of each of the last groups of `per_dot` samples, oldest first; the last group may be incomplete.
    pub fn dots(&self, name: &str, per_dot: usize, max_dots: usize) -> Vec<Option<u64>> {
        let Some(samples) = self.samples.get(name) else { return Vec::new() };
        let first = self.added - samples.len();
        let mean = |dot: usize| {
            let from = (dot * per_dot).max(first) - first;
            let group = samples.range(from..(dot * per_dot + per_dot).min(self.added) - first);
            let (sum, known) = group.flatten().fold((0, 0), |(sum, known), power| (sum + power, known + 1));
            sum.checked_div(known)
        };
        let end = self.added.div_ceil(per_dot);
        ((first / per_dot).max(end.saturating_sub(max_dots))..end).map(mean).collect()
    }
}

/// Draws values as one row of `width` braille characters, right-aligned. A value above 0 has at least one dot.
pub fn braille(dots: &[Option<u64>], max: u64, width: usize) -> String {
    // Bits of the left and the right column, from the lowest dot up (Unicode chapter 21.1).
    const COLUMNS: [[u32; 4]; 2] = [[0x40, 0x04, 0x02, 0x01], [0x80, 0x20, 0x10, 0x08]];
    let mut cells = vec![0u32; width];
    let visible = dots.len().min(width * 2);
    for (at, value) in dots[dots.len() - visible..].iter().enumerate() {
        let place = width * 2 - visible + at;
        let Some(value) = *value else { continue };
        let height = (u128::from(value) * 4).div_ceil(u128::from(max.max(1))).min(4);
        let bits = COLUMNS[place % 2].iter().take(height as usize);
        cells[place / 2] |= bits.sum::<u32>();
    }
    let to_char = |bits| if bits == 0 { ' ' } else { char::from_u32(0x2800 + bits).unwrap_or(' ') };
    cells.into_iter().map(to_char).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_columns_of_dots_and_unknown_ones_are_gaps() {
        assert_eq!(braille(&[Some(1), Some(4)], 4, 2), " ⣸");
        assert_eq!(braille(&[Some(100), None, Some(25), Some(0)], 100, 2), "⡇⡀");
        assert_eq!(braille(&[Some(9); 9], 9, 2), "⣿⣿");
        assert_eq!(braille(&[], 9, 2), "  ");
        assert_eq!(braille(&[Some(0)], 0, 1), " ");
    }

    #[test]
    fn groups_of_samples_keep_their_borders_and_gaps() {
        let mut history = PowerHistory::default();
        for power_mw in [10, 20, 30, 40, 50] {
            history.push(&[("a", Some(power_mw))]);
        }
        assert_eq!(history.dots("a", 2, 9), [Some(15), Some(35), Some(50)]);
        assert_eq!(history.dots("a", 2, 2), [Some(35), Some(50)]);
        history.push(&[("a", Some(60)), ("late", Some(7))]);
        assert_eq!(history.dots("a", 2, 9), [Some(15), Some(35), Some(55)]);
        assert_eq!(history.dots("late", 1, 9), [None, None, None, None, None, Some(7)]);
        history.push(&[]);
        assert_eq!(history.dots("a", 1, 2), [Some(60), None]);
        assert!(history.dots("none", 1, 2).is_empty());
    }

    #[test]
    fn an_hour_is_kept() {
        let mut history = PowerHistory::default();
        for power_mw in 0..MAX_SAMPLES as u64 + 10 {
            history.push(&[("a", Some(power_mw))]);
        }
        let dots = history.dots("a", 1, usize::MAX);
        assert_eq!((dots.len(), dots[0]), (MAX_SAMPLES, Some(10)));
    }
}
