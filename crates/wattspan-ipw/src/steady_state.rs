//! The steady state of a run with more than one query at a time.
//!
//! The window of a session begins when its concurrency is first full and ends when it is full for the last time, so that
//! neither ramp nor drain is in it. Invariant: a query of the steady state was open within a window from its beginning to
//! its end.

use super::table::QueryColumns;

/// The steady state of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct SteadyQueries {
    /// The length of the windows of all sessions together, seconds.
    pub window_s: f64,
    /// The indices of the queries in them.
    pub queries: Vec<u32>,
}

impl SteadyQueries {
    /// Finds the steady state of a closed loop of this concurrency; `None` at one query at a time, and if the concurrency
    /// was never full.
    pub fn find(columns: &QueryColumns, concurrency: usize) -> Option<Self> {
        if concurrency < 2 {
            return None;
        }
        let mut sessions = columns.session.clone();
        sessions.sort_unstable();
        sessions.dedup();
        let mut steady = Self { window_s: 0.0, queries: Vec::new() };
        for session in sessions {
            let is_open =
                |at: &u32| columns.delivered[*at as usize] && columns.session[*at as usize] == session;
            let queries = || (0..columns.len() as u32).filter(is_open);
            let Some((first_s, last_s)) =
                full_window(queries().map(|at| columns.open_s(at as usize)), concurrency)
            else {
                continue;
            };
            steady.window_s += last_s - first_s;
            steady.queries.extend(queries().filter(|at| {
                let [began_s, ended_s] = columns.open_s(*at as usize);
                first_s <= began_s && ended_s <= last_s
            }));
        }
        (steady.window_s > 0.0).then_some(steady)
    }
}

/// Returns the first and the last instant at which `concurrency` of the queries are open.
fn full_window(queries: impl Iterator<Item = [f64; 2]>, concurrency: usize) -> Option<(f64, f64)> {
    const ENDS: i8 = -1;
    const BEGINS: i8 = 1;
    let mut edges: Vec<(f64, i8)> =
        queries.flat_map(|[began_s, ended_s]| [(began_s, BEGINS), (ended_s, ENDS)]).collect();
    // At one instant queries end before others begin.
    edges.sort_unstable_by(|one, other| one.0.total_cmp(&other.0).then(one.1.cmp(&other.1)));
    let (mut open, mut first_s, mut last_s) = (0_usize, None, None);
    for (at_s, change) in edges {
        if change == ENDS {
            if open == concurrency {
                last_s = Some(at_s);
            }
            open = open.saturating_sub(1);
        } else {
            open += 1;
            if open == concurrency {
                first_s.get_or_insert(at_s);
            }
        }
    }
    first_s.zip(last_s)
}

#[cfg(test)]
mod tests {
    use super::super::columns::QueryColumns;
    use super::super::row::QueryRow;
    use super::super::scope::Scope;
    use super::*;

    /// Queries by session, beginning and end, in seconds.
    fn columns(queries: &[(u32, u64, u64)]) -> QueryColumns {
        let mut columns = QueryColumns::default();
        for (id, (session, began_s, ended_s)) in queries.iter().enumerate() {
            let row = QueryRow {
                id: id.to_string(),
                session: *session,
                began_ns: began_s * 1_000_000_000,
                duration_ns: (ended_s - began_s) * 1_000_000_000,
                ..QueryRow::default()
            };
            columns.push(&row, 0, &Scope::ALL.map(|scope| (scope, Vec::new())));
        }
        columns
    }

    /// A ramp at 0 and 1 s, then two at a time, and a drain from 10 to 14 s.
    const TWO_AT_ONCE: [(u32, u64, u64); 5] = [(0, 0, 4), (0, 1, 6), (0, 4, 8), (0, 6, 10), (0, 8, 14)];

    #[test]
    fn ramp_and_drain_are_not_in_the_steady_state() {
        let steady = SteadyQueries::find(&columns(&TWO_AT_ONCE), 2).unwrap();
        assert_eq!((steady.window_s, steady.queries), (9.0, vec![1, 2, 3]));
    }

    #[test]
    fn a_run_that_is_never_full_or_asks_one_at_a_time_has_none() {
        let all = columns(&TWO_AT_ONCE);
        assert_eq!((SteadyQueries::find(&all, 3), SteadyQueries::find(&all, 1)), (None, None));
        assert_eq!(SteadyQueries::find(&QueryColumns::default(), 2), None);
    }

    #[test]
    fn each_session_of_a_resumed_run_has_a_window() {
        // The clock of the second session began anew.
        let both = TWO_AT_ONCE.iter().copied().chain(TWO_AT_ONCE.iter().map(|(_, from, to)| (1, *from, *to)));
        let steady = SteadyQueries::find(&columns(&both.collect::<Vec<_>>()), 2).unwrap();
        assert_eq!((steady.window_s, steady.queries), (18.0, vec![1, 2, 3, 6, 7, 8]));
    }
}
