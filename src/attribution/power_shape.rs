//! The distribution of energy within one step of a counter, from a power sensor.
//!
//! A counter that moves every 100 ms gives the energy of that time; a power sensor shows when it was used. Owns the
//! sensor's integral at its readings. Invariant: the shaped interpolant begins and ends where the straight one does and
//! never falls. So for any sensor values the energy stays between the two counter updates, and all bounds hold.

use std::collections::VecDeque;

/// The maximum number of points: far more than a counter's step has, reached only if the counter does not move.
const MAX_SHAPE_POINTS: usize = 512;

/// An instant, and the integral at it, µJ.
type ShapePoint = (u64, u64);

/// The sensor's integral over the time that is not settled yet.
#[derive(Debug, Default)]
pub(crate) struct PowerShape {
    points: VecDeque<ShapePoint>,
}

impl PowerShape {
    /// Adds a value of the integral. A value or a time that went back discards all earlier points.
    pub(crate) fn add_point(&mut self, at_ns: u64, shape_uj: u64) {
        match self.points.back() {
            Some(&(last_ns, _)) if at_ns == last_ns => return,
            Some(&(last_ns, last_uj)) if at_ns < last_ns || shape_uj < last_uj => self.points.clear(),
            _ => {}
        }
        if self.points.len() == MAX_SHAPE_POINTS {
            self.points.pop_front();
        }
        self.points.push_back((at_ns, shape_uj));
    }

    /// The points of an interpolant that rises by `rise` between two counter updates: instants strictly between them,
    /// with the rise so far. Empty if the sensor does not cover the whole step, or its power was 0 throughout.
    pub(crate) fn interpolation_points(
        &self,
        from_ns: u64,
        to_ns: u64,
        rise: u128,
    ) -> impl Iterator<Item = (u64, u128)> {
        let ends = self
            .integral_at(from_ns)
            .zip(self.integral_at(to_ns))
            .filter(|(from, to)| to > from && (1..1 << 88).contains(&rise));
        let (from, to) = ends.unwrap_or((0, 0));
        let first = self.points.partition_point(|point| point.0 <= from_ns);
        let covered = if ends.is_some() { usize::MAX } else { 0 };
        let inside = self.points.range(first..).take(covered).take_while(move |point| point.0 < to_ns);
        // The product fits: at most 2^88 times 2^40, because `mul_div` limits the integral to 40 bits.
        inside.map(move |&(at_ns, uj)| (at_ns, mul_div(rise, scaled(uj).clamp(from, to) - from, to - from)))
    }

    /// Drops the points before the last one at or before `position_ns`.
    pub(crate) fn drop_before(&mut self, position_ns: u64) {
        while self.points.get(1).is_some_and(|next| next.0 <= position_ns) {
            self.points.pop_front();
        }
    }

    /// The integral at an instant, on the line between the points around it, in units of 2^-8 µJ.
    fn integral_at(&self, at_ns: u64) -> Option<u128> {
        let next = self.points.partition_point(|point| point.0 < at_ns);
        let (to_ns, to_uj) = *self.points.get(next)?;
        if to_ns == at_ns {
            return Some(scaled(to_uj));
        }
        let (from_ns, from_uj) = *self.points.get(next.checked_sub(1)?)?;
        let passed = u128::from(at_ns - from_ns).checked_mul(scaled(to_uj - from_uj))?;
        Some(scaled(from_uj) + passed / u128::from(to_ns - from_ns))
    }
}

fn scaled(uj: u64) -> u128 {
    u128::from(uj) << 8
}

/// `rise · share / whole`, rounded down; `share` is at most `whole`.
fn mul_div(rise: u128, share: u128, whole: u128) -> u128 {
    // The integral over one second at 10 kW has 42 bits in these units; bits beyond the highest 40 have no effect.
    let shift = 128_u32.saturating_sub(whole.leading_zeros()).saturating_sub(40);
    rise * (share >> shift) / ((whole >> shift) + u128::from(shift > 0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shape(points: &[ShapePoint]) -> PowerShape {
        let mut shape = PowerShape::default();
        points.iter().for_each(|&(at_ns, uj)| shape.add_point(at_ns, uj));
        shape
    }

    fn points(shape: &PowerShape, from_ns: u64, to_ns: u64, rise: u128) -> Vec<(u64, u128)> {
        shape.interpolation_points(from_ns, to_ns, rise).collect()
    }

    #[test]
    fn energy_follows_the_sensor() {
        // No power until 40, all of the energy from 40 to 60, no power after.
        let shape = shape(&[(0, 5), (20, 5), (40, 5), (60, 105), (80, 105), (100, 105)]);
        assert_eq!(points(&shape, 0, 100, 1_000), [(20, 0), (40, 0), (60, 1_000), (80, 1_000)]);
        assert_eq!(
            points(&shape, 50, 90, 1_000),
            [(60, 1_000), (80, 1_000)],
            "counter updates between two readings"
        );
    }

    #[test]
    fn a_sensor_that_does_not_cover_the_step_adds_no_points() {
        let shape = shape(&[(10, 0), (20, 10), (30, 20)]);
        assert_eq!(points(&shape, 5, 25, 100), []);
        assert_eq!(points(&shape, 15, 35, 100), []);
        assert_eq!(points(&PowerShape::default(), 0, 10, 100), []);
        assert_eq!(points(&shape, 12, 18, 100), [], "no reading in between");
    }

    #[test]
    fn a_zero_or_restarted_sensor_adds_no_points() {
        assert_eq!(points(&shape(&[(0, 7), (10, 7), (20, 7)]), 0, 20, 100), []);
        let mut restarted = shape(&[(0, 7), (10, 9)]);
        restarted.add_point(20, 1);
        restarted.add_point(30, 2);
        assert_eq!(points(&restarted, 5, 25, 100), []);
    }

    #[test]
    fn memory_is_bounded_while_the_counter_does_not_move() {
        let mut shape = PowerShape::default();
        (0..10_000).for_each(|at| shape.add_point(at, at));
        assert_eq!(shape.points.len(), MAX_SHAPE_POINTS);
        shape.drop_before(9_995);
        assert_eq!(shape.points.front(), Some(&(9_995, 9_995)));
    }

    proptest! {
        #[test]
        fn the_interpolant_is_monotone_between_counter_updates(
            points in proptest::collection::vec((0_u64..50_000_000, 0_u64..u64::MAX / 512), 0..60),
            from in 0_u64..500_000_000, length in 1_u64..500_000_000, rise in 0_u128..1 << 88,
        ) {
            let mut shape = PowerShape::default();
            let (mut at_ns, mut uj) = (0, 0_u64);
            for (gap_ns, more_uj) in points {
                (at_ns, uj) = (at_ns + gap_ns, uj.saturating_add(more_uj));
                shape.add_point(at_ns, uj);
            }
            let (mut last_ns, mut last) = (from, 0);
            for (point_ns, energy) in shape.interpolation_points(from, from + length, rise) {
                prop_assert!(last_ns < point_ns && point_ns < from + length);
                prop_assert!(last <= energy && energy <= rise);
                (last_ns, last) = (point_ns, energy);
            }
        }
    }
}
