//! The grid in time and the quantum in energy of coarse access, and the rounding of edges and accounts to them.
//!
//! Pure functions. Invariant: the output depends on the machine's energy only through the energy of whole steps of the grid.
//! This prevents power traces (CVE-2020-8694: energy at 1 kHz reveals instructions and keys, at 10 Hz it does not). The
//! account of an unsettled span has no figures.
//!
//! Two figures depend on the steps of the counters instead of the grid, so they are not passed on unchanged: `error_uj`
//! is about the energy of one counter step at each edge, and `idle_uj` sums the smaller of idle and actual energy per step.

use wattspan_client::account::{Account, Phase, Share, SpanState};
use wattspan_client::protocol::MethodError;

/// The grid: multiples of this on the monotonic clock, the same for all users. Also the minimum length of a span.
pub const GRID_NS: u64 = 100_000_000;

/// The quantum of all energies.
pub const QUANTUM_UJ: u64 = 1000;

/// The maximum weight with coarse access. A larger one would take energy from other users' spans.
pub const MAX_WEIGHT: f64 = 1.0;

/// Rejects a weight above [`MAX_WEIGHT`]; the attributor rejects invalid weights.
///
/// # Errors
/// `InvalidValue`.
pub fn check_weight(weight: f64) -> Result<(), MethodError> {
    if weight <= MAX_WEIGHT || weight.is_nan() {
        return Ok(());
    }
    let reason = format!("is {weight}; with coarse access a weight is at most {MAX_WEIGHT}");
    Err(MethodError::InvalidValue { field: "weight".into(), reason })
}

/// The first instant of the grid at or after `at_ns`.
pub fn round_up_to_grid(at_ns: u64) -> u64 {
    at_ns.div_ceil(GRID_NS).saturating_mul(GRID_NS)
}

/// The instant of an edge that was requested at `at_ns`: on the grid, and not before the horizon, where the attributor would
/// move it off the grid. Up to one step of the grid in the future.
pub fn grid_edge_ns(at_ns: u64, now_ns: u64, horizon_ns: u64) -> u64 {
    round_up_to_grid(at_ns.max(now_ns.saturating_sub(horizon_ns)))
}

/// Rounds a settled account of a span whose edges lie on the grid. Each figure is rounded separately, and the error grows by
/// the rounding.
pub fn round_account(account: &mut Account) {
    let length_ns = account.closed_ns.unwrap_or(account.opened_ns).saturating_sub(account.opened_ns);
    let cells = (length_ns / GRID_NS).max(1);
    for share in &mut account.domains {
        round_share(share, length_ns, cells);
    }
    let cell_uj = account.window_uj.unwrap_or(0) / cells;
    round_phases(&mut account.phases, cell_uj);
    account.error_uj = account.error_uj.map(|error_uj| widen_error(error_uj, cell_uj));
    account.share_uj = account.share_uj.map(round_to_quantum);
    account.window_uj = account.window_uj.map(round_to_quantum);
    account.idle_uj = None;
    account.mean_power_mw =
        account.share_uj.and_then(|share_uj| share_uj.saturating_mul(1_000_000).checked_div(length_ns));
}

fn round_share(share: &mut Share, length_ns: u64, cells: u64) {
    let cell_uj = share.window_uj.unwrap_or(0) / cells;
    share.error_uj = share.error_uj.map(|error_uj| widen_error(error_uj, cell_uj));
    share.share_uj = share.share_uj.map(round_to_quantum);
    share.window_uj = share.window_uj.map(round_to_quantum);
    share.idle_uj = None;
    share.unknown_ns = round_up_to_grid(share.unknown_ns).min(length_ns);
}

/// Rounds the cumulative sums of the phases, not each phase, so that the phases add up to the span.
fn round_phases(phases: &mut [Phase], cell_uj: u64) {
    let mut sum_uj = 0;
    for phase in phases {
        phase.error_uj = phase.error_uj.map(|error_uj| widen_error(error_uj, cell_uj));
        phase.share_uj = phase.share_uj.map(|share_uj| {
            let before_uj = round_to_quantum(sum_uj);
            sum_uj += share_uj;
            round_to_quantum(sum_uj) - before_uj
        });
    }
}

fn round_to_quantum(uj: u64) -> u64 {
    uj.saturating_add(QUANTUM_UJ / 2) / QUANTUM_UJ * QUANTUM_UJ
}

/// An error that contains the true one without revealing the counter steps at the edges: half of the domain's average energy
/// per step of the grid, doubled until it is large enough. For a counter that moves fifty times in half a step, half is
/// always enough.
fn widen_error(error_uj: u64, cell_uj: u64) -> u64 {
    // Both ends of the difference are rounded.
    let min_uj = error_uj.saturating_add(QUANTUM_UJ);
    let mut wide_uj = (cell_uj / 2).max(QUANTUM_UJ);
    while wide_uj < min_uj {
        wide_uj = wide_uj.saturating_mul(2);
    }
    wide_uj.div_ceil(QUANTUM_UJ).saturating_mul(QUANTUM_UJ)
}

/// Removes all figures from an account that is not final; names and times stay.
pub fn hide_figures(account: &mut Account) {
    account.state = if account.closed_ns.is_some() { SpanState::Provisional } else { SpanState::Open };
    (account.share_uj, account.window_uj, account.idle_uj) = (None, None, None);
    (account.error_uj, account.mean_power_mw) = (None, None);
    account.domains = Vec::new();
    // The current number of other spans is a figure too.
    account.peak_concurrency = 1;
    for phase in &mut account.phases {
        (phase.share_uj, phase.error_uj) = (None, None);
    }
}

/// Whether an account may be shown with coarse access. Decided by its content, so that a span that the same user opened with
/// more access, or one from the store, is not shown.
pub fn is_coarse(account: &Account) -> bool {
    // All fields are named, so that adding a field to the account requires a decision here.
    let Account {
        span: _,
        name: _,
        attributes: _,
        state: _,
        uid: _,
        opened_ns,
        closed_ns,
        moved_ns: _,
        opened_unix_ns: _,
        weight: _,
        share_uj,
        window_uj,
        idle_uj,
        error_uj,
        grade: _,
        simulated: _,
        mean_power_mw: _,
        peak_concurrency: _,
        durable: _,
        number: _,
        process: _,
        cgroup: _,
        process_uj,
        process_reason: _,
        at_least: _,
        domains,
        phases,
    } = account;
    let has_grid_times = is_on_grid(*opened_ns) && closed_ns.is_some_and(is_on_grid);
    let has_whole_sums = [share_uj, window_uj, error_uj].into_iter().all(is_whole_quanta)
        && idle_uj.is_none()
        && process_uj.is_none();
    has_grid_times
        && has_whole_sums
        && domains.iter().all(is_coarse_share)
        && phases.iter().all(is_coarse_phase)
}

fn is_coarse_share(share: &Share) -> bool {
    let Share { domain: _, grade: _, window_uj, share_uj, idle_uj, error_uj, unknown_ns, process_uj } = share;
    [share_uj, window_uj, error_uj].into_iter().all(is_whole_quanta)
        && idle_uj.is_none()
        && process_uj.is_none()
        && is_on_grid(*unknown_ns)
}

fn is_coarse_phase(phase: &Phase) -> bool {
    let Phase { name: _, opened_ns, closed_ns, share_uj, error_uj } = phase;
    is_on_grid(*opened_ns)
        && closed_ns.is_none_or(is_on_grid)
        && [share_uj, error_uj].into_iter().all(is_whole_quanta)
}

fn is_on_grid(at_ns: u64) -> bool {
    at_ns.is_multiple_of(GRID_NS)
}

fn is_whole_quanta(uj: &Option<u64>) -> bool {
    uj.is_none_or(|uj| uj.is_multiple_of(QUANTUM_UJ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Grade;

    fn share(uj: u64, error_uj: u64) -> Share {
        Share {
            domain: "package-0".into(),
            grade: Grade::Measured,
            window_uj: Some(uj * 2),
            share_uj: Some(uj),
            idle_uj: Some(uj / 3),
            error_uj: Some(error_uj),
            unknown_ns: 7,
            process_uj: None,
        }
    }

    fn phase(at: u64, uj: u64) -> Phase {
        let closed_ns = Some((at + 1) * GRID_NS);
        Phase { name: "p".into(), opened_ns: at * GRID_NS, closed_ns, share_uj: Some(uj), error_uj: Some(9) }
    }

    fn account(uj: u64, error_uj: u64) -> Account {
        Account {
            span: "s".into(),
            name: String::new(),
            attributes: Default::default(),
            state: SpanState::Settled,
            uid: 1,
            opened_ns: 10 * GRID_NS,
            closed_ns: Some(12 * GRID_NS),
            moved_ns: 0,
            opened_unix_ns: 0,
            weight: 1.0,
            share_uj: Some(uj),
            window_uj: Some(uj * 2),
            idle_uj: Some(uj / 3),
            error_uj: Some(error_uj),
            grade: Some(Grade::Measured),
            simulated: None,
            mean_power_mw: Some(1),
            peak_concurrency: 9,
            durable: None,
            number: None,
            process: None,
            cgroup: None,
            process_uj: None,
            process_reason: None,
            at_least: None,
            domains: vec![share(uj, error_uj)],
            phases: vec![phase(10, uj / 2), phase(11, uj - uj / 2)],
        }
    }

    #[test]
    fn an_edge_lies_on_the_grid_and_not_before_the_horizon() {
        let now_ns = 10 * GRID_NS + 37;
        let horizon_ns = 10_000_000;
        assert_eq!(grid_edge_ns(now_ns, now_ns, horizon_ns), 11 * GRID_NS);
        assert_eq!(grid_edge_ns(10 * GRID_NS, now_ns, horizon_ns), 10 * GRID_NS);
        assert_eq!(grid_edge_ns(3 * GRID_NS, now_ns, horizon_ns), 10 * GRID_NS);
        // Before the horizon the attributor would move the edge off the grid.
        let late_ns = now_ns + horizon_ns;
        assert_eq!(grid_edge_ns(10 * GRID_NS, late_ns, horizon_ns), 11 * GRID_NS);
        assert_eq!(
            (round_up_to_grid(0), round_up_to_grid(1), round_up_to_grid(GRID_NS)),
            (0, GRID_NS, GRID_NS)
        );
    }

    #[test]
    fn figures_are_whole_millijoules_and_the_error_bound_still_holds() {
        for uj in [0, 1, 499, 500, 1499, 123_456, 9_999_999, 5_000_000_000] {
            for error_uj in [0, 1, 999, 50_000, uj, 3 * uj] {
                let exact = account(uj, error_uj);
                let mut rounded = exact.clone();
                round_account(&mut rounded);
                assert!(is_coarse(&rounded), "{rounded:?}");
                let (got, widened) = (rounded.share_uj.unwrap(), rounded.error_uj.unwrap());
                assert!(got.saturating_sub(widened) <= uj.saturating_sub(error_uj), "{uj} ± {error_uj}");
                assert!(got + widened >= uj + error_uj, "{uj} ± {error_uj}");
                assert!(rounded.share_uj <= rounded.window_uj);
                let phases: u64 = rounded.phases.iter().map(|phase| phase.share_uj.unwrap()).sum();
                assert_eq!(phases, got);
                assert_eq!(rounded.mean_power_mw, Some(got * 1_000_000 / (2 * GRID_NS)));
            }
        }
    }

    #[test]
    fn the_error_bound_does_not_reveal_the_energy_at_the_edges() {
        let widened = |error_uj| {
            let mut rounded = account(10_000_000, error_uj);
            round_account(&mut rounded);
            rounded.error_uj
        };
        // 100 W over 200 ms: a millisecond at each edge is 200 mJ, give or take any secret.
        assert_eq!(widened(100_000), widened(300_000));
        assert_eq!(widened(1), widened(4_000_000));
        assert!(
            widened(6_000_000) > widened(4_000_000),
            "an error larger than half a step of the grid is reported"
        );
    }

    #[test]
    fn unknown_figures_stay_unknown() {
        let mut none = Account {
            share_uj: None,
            window_uj: None,
            error_uj: None,
            domains: vec![Share { share_uj: None, window_uj: None, error_uj: None, ..share(0, 0) }],
            ..account(0, 0)
        };
        round_account(&mut none);
        assert_eq!(
            (none.share_uj, none.window_uj, none.error_uj, none.mean_power_mw),
            (None, None, None, None)
        );
        assert_eq!((none.domains[0].share_uj, none.domains[0].error_uj), (None, None));
        assert_eq!(none.domains[0].unknown_ns, GRID_NS);
    }

    #[test]
    fn an_account_that_is_not_final_has_no_figure() {
        let mut hidden = account(123_456, 7);
        hide_figures(&mut hidden);
        assert_eq!(hidden.state, SpanState::Provisional);
        let text = serde_json::to_string(&hidden).unwrap();
        for figure in ["_uj", "_mw", "package-0"] {
            assert!(!text.contains(figure), "{text}");
        }
        hidden.closed_ns = None;
        hide_figures(&mut hidden);
        assert_eq!(hidden.state, SpanState::Open);
    }

    #[test]
    fn an_account_with_any_figure_off_the_grid_is_not_coarse() {
        let fitting = || {
            let mut rounded = account(123_456_789, 7);
            round_account(&mut rounded);
            rounded
        };
        assert!(is_coarse(&fitting()));
        let mutations: [fn(&mut Account); 10] = [
            |account| account.domains[0].unknown_ns = 7,
            |account| account.opened_ns += 1,
            |account| account.closed_ns = None,
            |account| account.closed_ns = Some(12 * GRID_NS - 1),
            |account| account.share_uj = Some(1),
            |account| account.idle_uj = Some(1000),
            |account| account.domains[0].window_uj = Some(1001),
            |account| account.domains[0].error_uj = Some(1),
            |account| account.phases[0].closed_ns = Some(1),
            |account| account.phases[1].share_uj = Some(1),
        ];
        for (number, mutate) in mutations.iter().enumerate() {
            let mut account = fitting();
            mutate(&mut account);
            assert!(!is_coarse(&account), "{number}");
        }
    }
}
