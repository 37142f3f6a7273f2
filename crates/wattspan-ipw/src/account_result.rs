//! Decides what the daemon's reply about a closed span means for its query: pending, an account, or a reason for no
//! energy.
//!
//! Also widens the error where the daemon moved an edge. Invariant: a query takes an account only if most of the query
//! lies within it, and the error bounds the query's true energy or is absent. Errors of the daemon are quoted
//! verbatim.

use std::borrow::Cow;
use std::time::Instant;

use wattspan_client::account::{Account, Share, SpanState};
use wattspan_client::protocol::{Access, MethodError};
use wattspan_client::{Client, ClientError};

use super::row::{DomainEnergy, QueryEnergy};
use super::scope::{RunDomain, Scope};

/// The phase before the first token.
pub const PREFILL: &str = "prefill";
/// The phase from the first token on.
pub const DECODE: &str = "decode";

/// The largest rounding error of a value at coarse access, in microjoules.
const MAX_ROUNDING_UJ: u64 = 1_000;

/// Why a query has no energy.
pub type NoEnergyReason = Cow<'static, str>;

/// The result of waiting for a closed span's account.
pub type AccountResult = Result<Box<Account>, NoEnergyReason>;

/// A query whose span was closed.
#[derive(Debug, Clone, Copy)]
pub struct EndedQuery {
    /// Start and end of the query, monotonic nanoseconds.
    pub edges_ns: (u64, u64),
    /// When to stop waiting for its account.
    pub deadline: Instant,
}

/// The meaning of the daemon's reply for a query.
#[derive(Debug, PartialEq)]
pub enum AccountStatus {
    /// The account has not settled.
    Pending,
    /// The caller's call quota is exhausted; retry later.
    QuotaExceeded(String),
    /// The result will not change.
    Final(AccountResult),
}

/// Interprets a reply to a request for a query's account.
pub fn account_status(
    reply: Result<Account, ClientError>,
    query: EndedQuery,
    access: Access,
) -> AccountStatus {
    let is_late = query.deadline < Instant::now();
    AccountStatus::Final(match reply {
        Ok(account) if account.state == SpanState::Settled => {
            match is_mostly_outside(&account, query.edges_ns) {
                true if access == Access::Coarse => {
                    Err("the query is too short for the grid of 100 ms on which spans of coarse access lie"
                        .into())
                }
                true => Err(
                    "the meter received the span too late: the meter stalled, or the machine is overloaded"
                        .into(),
                ),
                false => Ok(Box::new(account)),
            }
        }
        Ok(account) if matches!(account.state, SpanState::Abandoned | SpanState::Interrupted) => {
            Err("the meter ended the span before the query ended".into())
        }
        Ok(_) if is_late => Err("the account did not settle in time".into()),
        Ok(_) => return AccountStatus::Pending,
        Err(ClientError::Method(method_error @ MethodError::QuotaExceeded { .. })) if !is_late => {
            return AccountStatus::QuotaExceeded(method_error.to_string());
        }
        Err(ClientError::Method(MethodError::NoSuchSpan { .. })) => Err(
            "the meter does not know the span: it was unreachable when the query began, or refused the span"
                .into(),
        ),
        Err(error) => Err(format!("the meter gives no account: {error}").into()),
    })
}

/// Returns whether more than half of a query lies outside its account.
fn is_mostly_outside(account: &Account, (began_ns, ended_ns): (u64, u64)) -> bool {
    account.moved_ns > ended_ns.saturating_sub(began_ns) / 2
}

/// Widens the error where the daemon moved an edge: the query may have used up to the whole window energy between the
/// two instants. Without that window the error is unknown, hence absent. This applies to every caller without
/// telemetry access, and at coarse access to nearly every query, since the grid moves both edges.
pub fn widen_error(client: &Client, access: Access, account: &mut Account, (began_ns, ended_ns): (u64, u64)) {
    let closed_ns = account.closed_ns.unwrap_or(ended_ns);
    for (query_ns, account_ns) in [(began_ns, account.opened_ns), (ended_ns, closed_ns)] {
        if query_ns == account_ns {
            continue;
        }
        let can_read_window = access >= Access::Telemetry;
        let read_window =
            || client.read_window(wire_ns(query_ns.min(account_ns)), wire_ns(query_ns.max(account_ns))).ok();
        let window = can_read_window.then(read_window).flatten();
        let sum = |error: Option<u64>, used: Option<u64>, uncertainty: Option<u64>| {
            Some(error? + used? + uncertainty?)
        };
        let (used_uj, uncertainty_uj) =
            window.as_ref().map_or((None, None), |all| (all.window_uj, all.error_uj));
        account.error_uj = sum(account.error_uj, used_uj, uncertainty_uj);
        for share in &mut account.domains {
            let all = window.iter().flat_map(|all| &all.domains).find(|all| all.domain == share.domain);
            let (used_uj, uncertainty_uj) = all.map_or((None, None), |all| (all.window_uj, all.error_uj));
            share.error_uj = sum(share.error_uj, used_uj, uncertainty_uj);
        }
    }
}

/// Converts an account to the energy of a row; `domains` are the run's, in order. The total is the sum over the run's
/// counted domains, whatever domains the daemon counts now. If one of them has no value, there is no total.
///
/// # Errors
/// The daemon no longer measures any of the run's domains.
pub fn query_energy(account: &Account, domains: &[RunDomain]) -> Result<QueryEnergy, NoEnergyReason> {
    let find = |name: &str| account.domains.iter().find(|share| share.domain == name);
    if !domains.is_empty() && !domains.iter().any(|domain| find(&domain.name).is_some()) {
        return Err("the meter measures none of the domains that it had when the run began".into());
    }
    let parts: Vec<DomainEnergy> = domains
        .iter()
        .map(|domain| find(&domain.name).map_or_else(DomainEnergy::default, domain_energy))
        .collect();
    let phase = |name: &str| account.phases.iter().find(|phase| phase.name == name);
    // The phase mark may come after the opening; the unnamed phase in between is prefill.
    let prefill_shares = [phase(""), phase(PREFILL)].into_iter().flatten().map(|phase| phase.share_uj);
    let is_other = |share: &&Share| !domains.is_empty() && !domains.iter().any(|it| it.name == share.domain);
    let mut energy = QueryEnergy {
        span: account.span.clone(),
        share_uj: account.share_uj,
        error_uj: account.error_uj,
        idle_uj: account.idle_uj,
        window_uj: account.window_uj,
        remainder_pj: 0,
        grade: account.grade,
        at_least: account.at_least == Some(true),
        span_ns: account.closed_ns.map_or(0, |closed| closed.saturating_sub(account.opened_ns)),
        moved_ns: account.moved_ns,
        at_once: account.peak_concurrency,
        prefill_uj: phase(PREFILL).and_then(|_| prefill_shares.sum()),
        decode_uj: phase(DECODE).and_then(|phase| phase.share_uj),
        domains: parts,
        other_domains: account
            .domains
            .iter()
            .filter(is_other)
            .map(|share| share.domain.to_string())
            .collect(),
    };
    let counted = Scope::Host.domain_indices(domains);
    let total = Scope::sum_domains(&energy.domains, &counted);
    // At coarse access each value is rounded separately.
    let is_same_total =
        |of_run: u64, of_meter: u64| of_run.abs_diff(of_meter) <= MAX_ROUNDING_UJ * counted.len() as u64;
    let differs_from_total =
        total.share_uj.zip(account.share_uj).is_some_and(|(one, other)| !is_same_total(one, other));
    let lacks_domain = counted.iter().any(|at| find(&domains[*at].name).is_none());
    if lacks_domain || differs_from_total || !energy.other_domains.is_empty() {
        // The machine's domains changed since the run began, so the account's total may count others. Phase energies
        // exist only for the account's total.
        (energy.share_uj, energy.error_uj) = (total.share_uj, total.error_uj);
        (energy.idle_uj, energy.window_uj) = (total.idle_uj, total.window_uj);
        (energy.prefill_uj, energy.decode_uj) = (None, None);
        let of_run =
            account.domains.iter().filter(|share| counted.iter().any(|at| domains[*at].name == share.domain));
        energy.grade = of_run.map(|share| share.grade).max();
    }
    Ok(energy)
}

/// Returns a query's energy in a domain; empty if the readings do not cover the whole query.
fn domain_energy(share: &Share) -> DomainEnergy {
    if share.unknown_ns > 0 {
        return DomainEnergy::default();
    }
    DomainEnergy {
        share_uj: share.share_uj,
        error_uj: share.error_uj,
        idle_uj: share.idle_uj,
        window_uj: share.window_uj,
    }
}

fn wire_ns(at_ns: u64) -> i64 {
    i64::try_from(at_ns).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use wattspan_client::account::Phase;
    use wattspan_client::domain::{DomainKind, Grade};

    use super::*;

    fn method_error(error: MethodError) -> Result<Account, ClientError> {
        Err(ClientError::Method(error))
    }

    fn query(timeout: Duration) -> EndedQuery {
        EndedQuery { edges_ns: (0, 1), deadline: Instant::now() + timeout }
    }

    #[test]
    fn method_errors_are_quoted_and_quota_errors_are_retried() {
        let minute = query(Duration::from_secs(60));
        let expired = EndedQuery {
            edges_ns: (0, 1),
            deadline: Instant::now().checked_sub(Duration::from_secs(1)).unwrap(),
        };
        let quota = || MethodError::QuotaExceeded { quota: "calls a second".into(), limit: 200 };
        let quota_message = "the limit of 200 calls a second is reached";
        assert_eq!(
            account_status(method_error(quota()), minute, Access::Coarse),
            AccountStatus::QuotaExceeded(quota_message.into())
        );
        let reason = |reply, query| match account_status(reply, query, Access::Coarse) {
            AccountStatus::Final(Err(reason)) => reason.into_owned(),
            word => panic!("{word:?}"),
        };
        assert_eq!(
            reason(method_error(quota()), expired),
            format!("the meter gives no account: {quota_message}")
        );
        let denied = method_error(MethodError::AccessDenied { needs: "coarse".into() });
        assert_eq!(reason(denied, minute), "the meter gives no account: this needs coarse access");
        let unknown = method_error(MethodError::NoSuchSpan { span: "s".into() });
        assert!(reason(unknown, minute).starts_with("the meter does not know the span"));
    }

    fn share(domain: &str, uj: u64) -> Share {
        Share {
            domain: domain.into(),
            grade: Grade::Measured,
            window_uj: Some(2 * uj),
            share_uj: Some(uj),
            idle_uj: Some(uj / 2),
            process_uj: None,
            error_uj: Some(1),
            unknown_ns: 0,
        }
    }

    fn account(domains: Vec<Share>) -> Account {
        let phase = |name: &str| Phase {
            name: name.into(),
            opened_ns: 0,
            closed_ns: None,
            share_uj: Some(7),
            error_uj: None,
        };
        let text = r#"{"span":"s","name":"","attributes":{},"state":"settled","uid":1,"opened_ns":0,"closed_ns":9,
            "moved_ns":0,"opened_unix_ns":0,"weight":1.0,"share_uj":14,"window_uj":28,"peak_concurrency":2,"domains":[],
            "phases":[]}"#;
        Account {
            domains,
            phases: vec![phase(PREFILL), phase(DECODE)],
            ..serde_json::from_str(text).unwrap()
        }
    }

    fn run_domain(name: &str, counted: bool) -> RunDomain {
        RunDomain {
            name: name.into(),
            kind: DomainKind::Gpu,
            source: "replay".into(),
            device: None,
            parent: None,
            counted,
            grade: Grade::Measured,
            update_interval_ns: None,
        }
    }

    #[test]
    fn an_account_of_the_run_domains_is_unchanged() {
        let account = account(vec![share("a", 10), share("b", 4)]);
        let kept = query_energy(&account, &[run_domain("a", true), run_domain("b", true)]).unwrap();
        assert_eq!((kept.share_uj, kept.window_uj, kept.prefill_uj), (Some(14), Some(28), Some(7)));
        assert_eq!((kept.domains[1].window_uj, kept.other_domains.len()), (Some(8), 0));
    }

    #[test]
    fn a_missing_counted_domain_leaves_no_total() {
        let energy_of =
            |domains: &[RunDomain]| query_energy(&account(vec![share("a", 10)]), domains).unwrap();
        let kept = energy_of(&[run_domain("a", true), run_domain("b", true)]);
        assert_eq!((kept.share_uj, kept.window_uj, kept.prefill_uj), (None, None, None));
        assert_eq!((kept.domains[0].share_uj, kept.domains[1].share_uj), (Some(10), None));
        let kept = energy_of(&[run_domain("a", true), run_domain("core", false)]);
        assert_eq!((kept.share_uj, kept.prefill_uj), (Some(14), Some(7)), "it was in no total");
    }

    #[test]
    fn a_domain_that_becomes_live_during_the_run_is_excluded_from_totals() {
        let account = account(vec![share("a", 10), share("psys", 400)]);
        let kept = query_energy(&account, &[run_domain("a", true)]).unwrap();
        assert_eq!((kept.share_uj, kept.idle_uj, kept.window_uj), (Some(10), Some(5), Some(20)));
        assert_eq!(kept.other_domains, ["psys"]);
        assert_eq!(kept.decode_uj, None, "it may be a part of the other total");
        assert!(
            query_energy(&account, &[run_domain("b", true)]).unwrap_err().contains("none of the domains")
        );
    }

    #[test]
    fn totals_over_other_domains_are_recomputed() {
        let mut account = account(vec![share("a", 10_000_000), share("b", 4_000_000)]);
        account.share_uj = Some(14_000_000);
        let kept = query_energy(&account, &[run_domain("a", true), run_domain("b", false)]).unwrap();
        assert_eq!((kept.share_uj, kept.prefill_uj), (Some(10_000_000), None));
        account.share_uj = Some(10_001_000);
        let kept = query_energy(&account, &[run_domain("a", true), run_domain("b", false)]).unwrap();
        assert_eq!((kept.share_uj, kept.prefill_uj), (Some(10_001_000), Some(7)), "that is rounding");
    }

    #[test]
    fn a_domain_with_unknown_time_has_no_energy() {
        let partial = Share { unknown_ns: 3, error_uj: None, ..share("a", 10) };
        let kept = query_energy(&account(vec![partial]), &[run_domain("a", true)]).unwrap();
        assert_eq!(kept.domains, [DomainEnergy::default()]);
    }
}
