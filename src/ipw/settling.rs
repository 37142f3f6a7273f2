//! What the meter's word on a closed span means for its query: wait, an account, or why there is none.
//!
//! Owns the reasons that rows give, and what an edge that the meter moved may have cost. Invariant: an account is a query's
//! only where most of the query lies in it, and its error holds the truth of the query or is absent; what the meter
//! refuses is told in its own words.

use std::borrow::Cow;
use std::time::Instant;

use super::row::{Energy, Part};
use crate::client::{Client, Failure};
use crate::ledger::account::{Account, State};
use crate::protocol::{Access, Refusal};

/// The phase before the first token.
pub const PREFILL: &str = "prefill";
/// The phase from the first token on.
pub const DECODE: &str = "decode";

/// Why a query has no energy.
pub type Reason = Cow<'static, str>;

/// What a closed span gave.
pub type Settled = Result<Box<Account>, Reason>;

/// A query whose span was closed.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// When it began and ended.
    pub edges_ns: (u64, u64),
    /// How long its account is waited for.
    pub until: Instant,
}

/// What the meter's answer means.
#[derive(Debug, PartialEq)]
pub enum Word {
    /// It is not settled.
    NotYet,
    /// The caller's calls are used up.
    TooManyCalls(String),
    /// This is all that there will be.
    Last(Settled),
}

/// What this answer means for a query, at this access.
pub fn word(answer: Result<Account, Failure>, query: Ended, access: Access) -> Word {
    let late = query.until < Instant::now();
    Word::Last(match answer {
        Ok(account) if account.state == State::Settled => match is_another(&account, query.edges_ns) {
            true if access == Access::Coarse => {
                Err("the query is too short for the grid of 100 ms on which spans of coarse access lie"
                    .into())
            }
            true => {
                Err("the meter heard of the query too late: it was stalled, or this machine is too busy"
                    .into())
            }
            false => Ok(Box::new(account)),
        },
        Ok(account) if matches!(account.state, State::Abandoned | State::Interrupted) => {
            Err("the meter ended the span before its time".into())
        }
        Ok(_) if late => Err("the account did not settle in time".into()),
        Ok(_) => return Word::NotYet,
        Err(Failure::Refused(refusal @ Refusal::QuotaExceeded { .. })) if !late => {
            return Word::TooManyCalls(refusal.to_string());
        }
        Err(Failure::Refused(Refusal::NoSuchSpan { .. })) => {
            Err("the meter does not know the span: it was away when the query began, or refused it".into())
        }
        Err(failure) => Err(format!("the meter gives no account: {failure}").into()),
    })
}

/// Whether so much of a query lies outside its account that the figure would be about something else.
fn is_another(account: &Account, (began_ns, ended_ns): (u64, u64)) -> bool {
    account.moved_ns > ended_ns.saturating_sub(began_ns) / 2
}

/// Where the meter moved an edge, the query may have used up to everything that the machine used between the two: this
/// goes into the error. Where nobody can tell how much that was, nothing is guaranteed any more: so it is for every caller
/// that may not read windows, and with coarse access for nearly every query, since the grid moves both its edges.
pub fn widen(client: &Client, access: Access, account: &mut Account, (began_ns, ended_ns): (u64, u64)) {
    let closed_ns = account.closed_ns.unwrap_or(ended_ns);
    for (asked_ns, got_ns) in [(began_ns, account.opened_ns), (ended_ns, closed_ns)] {
        if asked_ns == got_ns {
            continue;
        }
        let may_know = access >= Access::Telemetry;
        let read = || client.window(whole(asked_ns.min(got_ns)), whole(asked_ns.max(got_ns))).ok();
        let window = may_know.then(read).flatten();
        let sum = |error: Option<u64>, used: Option<u64>, doubt: Option<u64>| Some(error? + used? + doubt?);
        let (used_uj, doubt_uj) = window.as_ref().map_or((None, None), |all| (all.window_uj, all.error_uj));
        account.error_uj = sum(account.error_uj, used_uj, doubt_uj);
        for share in &mut account.domains {
            let all = window.iter().flat_map(|all| &all.domains).find(|all| all.domain == share.domain);
            let (used_uj, doubt_uj) = all.map_or((None, None), |all| (all.window_uj, all.error_uj));
            share.error_uj = sum(share.error_uj, used_uj, doubt_uj);
        }
    }
}

/// What a row keeps of an account; `domains` names the run's, in their order.
///
/// # Errors
/// It is no account of the run's machine: the meter measures other domains by now.
pub fn energy(account: &Account, domains: &[String]) -> Result<Energy, Reason> {
    if !domains.iter().all(|name| account.domains.iter().any(|share| share.domain == *name)) {
        return Err("the meter lacks domains that it had when the run began".into());
    }
    let part = |name: &String| {
        let share = account.domains.iter().find(|share| share.domain == *name);
        share.map_or_else(Part::default, |share| Part {
            share_uj: share.share_uj,
            error_uj: share.error_uj,
            idle_uj: share.idle_uj,
        })
    };
    let phase = |name: &str| account.phases.iter().find(|phase| phase.name == name);
    // Where the mark came later than the opening, the time between has no name, and was prefill.
    let before = [phase(""), phase(PREFILL)].into_iter().flatten().map(|phase| phase.share_uj);
    Ok(Energy {
        span: account.span.clone(),
        share_uj: account.share_uj,
        error_uj: account.error_uj,
        idle_uj: account.idle_uj,
        window_uj: account.window_uj,
        grade: account.grade,
        span_ns: account.closed_ns.map_or(0, |closed| closed.saturating_sub(account.opened_ns)),
        moved_ns: account.moved_ns,
        at_once: account.peak_concurrency,
        prefill_uj: phase(PREFILL).and_then(|_| before.sum()),
        decode_uj: phase(DECODE).and_then(|phase| phase.share_uj),
        domains: domains.iter().map(part).collect(),
    })
}

fn whole(at_ns: u64) -> i64 {
    i64::try_from(at_ns).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn refused(refusal: Refusal) -> Result<Account, Failure> {
        Err(Failure::Refused(refusal))
    }

    fn query(patience: Duration) -> Ended {
        Ended { edges_ns: (0, 1), until: Instant::now() + patience }
    }

    #[test]
    fn a_refusal_is_told_in_the_meters_words_and_used_up_calls_are_waited_for() {
        let minute = query(Duration::from_secs(60));
        let past =
            Ended { edges_ns: (0, 1), until: Instant::now().checked_sub(Duration::from_secs(1)).unwrap() };
        let quota = || Refusal::QuotaExceeded { quota: "calls a second".into(), limit: 200 };
        let told = "the limit of 200 calls a second is reached";
        assert_eq!(word(refused(quota()), minute, Access::Coarse), Word::TooManyCalls(told.into()));
        let reason = |answer, query| match word(answer, query, Access::Coarse) {
            Word::Last(Err(reason)) => reason.into_owned(),
            word => panic!("{word:?}"),
        };
        assert_eq!(reason(refused(quota()), past), format!("the meter gives no account: {told}"));
        let denied = refused(Refusal::AccessDenied { needs: "coarse".into() });
        assert_eq!(reason(denied, minute), "the meter gives no account: this needs coarse access");
        let unknown = refused(Refusal::NoSuchSpan { span: "s".into() });
        assert!(reason(unknown, minute).starts_with("the meter does not know the span"));
    }
}
