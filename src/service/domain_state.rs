//! How a domain is, in the words for whoever asks.
//!
//! Owns the one exception to what the sampler's character says: a battery that rests is no broken counter.

use crate::domain::{Domain, Kind, Liveness};
use crate::sampler::counter_profile::CounterProfile;

/// The domain's state; a battery that is silent is so because nothing is drawn from it.
pub(crate) fn state_of(domain: &Domain, character: &CounterProfile) -> (Liveness, Option<String>) {
    const RESTS: &str = "is not discharging; a battery is metered only while it feeds the machine";
    match character.liveness() {
        (silent, Some(_)) if domain.kind == Kind::Battery && silent != Liveness::Live => {
            (silent, Some(RESTS.into()))
        }
        state => state,
    }
}
