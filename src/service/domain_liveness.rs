//! How a domain is, in the words for whoever asks.
//!
//! Owns the one exception to what the sampler's character says: a battery that rests is no broken counter.

use crate::domain::{Domain, DomainKind, Liveness};
use crate::sampler::counter_profile::CounterProfile;

/// The domain's state; a battery that is silent is so because nothing is drawn from it.
pub(crate) fn domain_liveness(domain: &Domain, profile: &CounterProfile) -> (Liveness, Option<String>) {
    const BATTERY_IDLE_REASON: &str =
        "is not discharging; a battery is metered only while it feeds the machine";
    match profile.liveness() {
        (silent, Some(_)) if domain.kind == DomainKind::Battery && silent != Liveness::Live => {
            (silent, Some(BATTERY_IDLE_REASON.into()))
        }
        state => state,
    }
}
