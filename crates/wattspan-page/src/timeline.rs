//! Places intervals of time in rows, so that no two of one row overlap.

/// The row of each interval (from, to), and the number of rows. The intervals are in the order of their beginnings; each
/// takes the first row that is free.
pub fn assign_rows(intervals: impl Iterator<Item = (f64, f64)>) -> (Vec<usize>, usize) {
    let mut free_at: Vec<f64> = Vec::new();
    let place = |(from, to): (f64, f64)| {
        let row = free_at.iter().position(|end| *end <= from).unwrap_or(free_at.len());
        if row == free_at.len() {
            free_at.push(to);
        }
        free_at[row] = to;
        row
    };
    let rows = intervals.map(place).collect();
    (rows, free_at.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_of_one_row_do_not_overlap_and_rows_are_reused() {
        let intervals = [(0.0, 4.0), (1.0, 2.0), (2.0, 3.0), (2.5, 9.0), (4.0, 5.0)];
        assert_eq!(assign_rows(intervals.into_iter()), (vec![0, 1, 1, 2, 0], 3));
        assert_eq!(assign_rows(std::iter::empty()), (vec![], 0));
    }
}
