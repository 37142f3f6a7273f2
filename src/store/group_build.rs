//! Builds the filters of groups of segments, one after another, the lowest segments first.
//!
//! It runs between commits and not in the transaction that seals a segment: a part that cannot be read must not fail a commit.

use std::collections::VecDeque;

use rusqlite::Connection;

use super::account_index::segment_of;
use super::schema::DatabaseError;
use super::segment_filter::{group_levels, write_group};

/// The number of groups that one step considers.
const GROUPS_PER_STEP: usize = 16;

/// The state between two steps.
#[derive(Debug)]
pub(super) struct GroupBuild {
    /// The groups that end below this segment are in `queue`, or done.
    seen_below: i64,
    /// Level and last segment. The parts of a group are before it.
    queue: VecDeque<(u32, i64)>,
}

impl GroupBuild {
    /// Begins with the segment of the first account.
    pub(super) fn new(first_id: i64) -> Self {
        Self { seen_below: segment_of(first_id), queue: VecDeque::new() }
    }

    /// Builds at most one filter; returns whether there may be more. `last_id` is the last account.
    pub(super) fn step(&mut self, connection: &Connection, last_id: i64) -> Result<bool, DatabaseError> {
        let open_segment = segment_of(last_id + 1);
        for segment in self.seen_below..open_segment {
            self.queue.extend(group_levels(segment).map(|level| (level, segment)));
        }
        self.seen_below = self.seen_below.max(open_segment);
        for _ in 0..GROUPS_PER_STEP {
            let Some((level, last_segment)) = self.queue.pop_front() else { return Ok(false) };
            if write_group(connection, level, last_segment)? {
                break;
            }
        }
        Ok(!self.queue.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::account_index::segment_start;
    use super::super::segment_filter::{FilterLookup, encode_filter};
    use super::*;

    /// The number of blocks read by SQLite.
    fn connection() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE block (id INTEGER PRIMARY KEY, bytes BLOB NOT NULL)").unwrap();
        connection
    }

    fn add_segment(connection: &Connection, segment: i64, values: impl IntoIterator<Item = u32>) {
        for block in encode_filter(segment, &HashSet::from_iter(values)) {
            connection.execute("INSERT INTO block VALUES (?1, ?2)", block).unwrap();
        }
    }

    fn build(connection: &Connection, segments: i64) -> usize {
        let mut build = GroupBuild::new(1);
        let steps =
            1 + (0..10_000).take_while(|_| build.step(connection, segment_start(segments)).unwrap()).count();
        assert!(build.queue.is_empty());
        steps
    }

    #[test]
    fn groups_exclude_what_none_of_their_segments_has() {
        let connection = connection();
        const SEGMENTS: i64 = 600;
        let common = [5, 1 << 30, u32::MAX];
        for segment in 0..SEGMENTS {
            let own = (segment as u32).wrapping_mul(0x9e37_79b9);
            add_segment(&connection, segment, common.into_iter().chain([own]));
        }
        build(&connection, SEGMENTS);
        for (searched, segment) in
            [(7, None), (0x9e37_79b9, Some(1)), (0x9e37_79b9_u32.wrapping_mul(300), Some(300))]
        {
            let searched = [searched];
            let mut lookup = FilterLookup::new(&connection, &searched).unwrap();
            // Down and up: the segments that may have it, and the number of look-ups.
            let (mut down, mut at, mut steps) = (Vec::new(), SEGMENTS - 1, 0);
            while at >= 0 {
                steps += 1;
                match lookup.excluded_down(at, 0).unwrap() {
                    0 => {
                        down.push(at);
                        at -= 1;
                    }
                    count => at -= count,
                }
            }
            let (mut up, mut at) = (Vec::new(), 0);
            while at < SEGMENTS {
                steps += 1;
                match lookup.excluded_up(at, SEGMENTS - 1).unwrap() {
                    0 => {
                        up.push(at);
                        at += 1;
                    }
                    count => at += count,
                }
            }
            let expected: Vec<i64> = segment.into_iter().collect();
            assert_eq!((&down, &up), (&expected, &expected), "{searched:?}");
            assert!(steps < 80, "{steps} look-ups");
        }
        let searched = [7];
        let mut lookup = FilterLookup::new(&connection, &searched).unwrap();
        assert_eq!(lookup.excluded_down(511, 0).unwrap(), 512);
        assert_eq!(lookup.excluded_down(511, 1).unwrap(), 64, "a part that may not be used is not skipped");
        assert_eq!(lookup.excluded_up(0, 510).unwrap(), 64);
    }

    #[test]
    fn a_group_with_a_damaged_part_or_too_many_values_has_no_filter() {
        let connection = connection();
        for segment in 0..24 {
            let base = segment as u32 * 40_000;
            let count = if segment < 8 { 40_000 } else { 1 };
            add_segment(&connection, segment, base..base + count);
        }
        connection.execute("UPDATE block SET bytes = zeroblob(8) WHERE id = (20 << 7) + 70", []).unwrap();
        build(&connection, 24);
        let searched = [u32::MAX];
        let mut lookup = FilterLookup::new(&connection, &searched).unwrap();
        let excluded = [7, 15, 23].map(|segment| lookup.excluded_down(segment, 0).unwrap());
        assert_eq!(excluded, [1, 8, 1]);
    }
}
