//! A simulated machine, computed from a description.
//!
//! ```toml
//! name = "one package"             # optional
//!
//! [[domain]]
//! name = "package-0"
//! kind = "package"                 # psys package core uncore dram gpu gpu-memory npu soc module battery cpu
//! profile = [[1.0, 40], [0.5, 180]] # seconds and watts, over and over
//! parent = "psys"                  # optional, as all that follows; the values here are the defaults
//! device = "GPU-…"
//! grade = "measured"               # measured modelled integrated estimated
//! ceiling_w = 250                  # default: unknown
//! update_ns = 1_000_000            # the counter moves this often
//! phase_ns = 0                     # the first time so long after the start
//! jitter_ns = 0                    # and late by up to this much, each time anew
//! latency_ns = 0                   # and shows so much later
//! quantum_uj = 1                   # in whole steps of this
//! wrap_uj = 262_144_000_000        # and begins at 0 again after this; default: never
//! stamped = false                  # the hardware tells the instant of each update
//! stuck = false                    # the counter never moves
//! lost_at_s = 5.0                  # away from here
//! back_at_s = 6.0                  # to here; default: for ever
//! reset_at_s = 9.0                 # begins at 0 here
//! ```
//!
//! Owns the description and the counter that each domain shows at an instant; time is counted from the machine's start.
//! Exact: the counter is the closed-form integral of the power at its last update, cut to whole steps. Reads no clock.

use std::ops::Range;

use crate::domain::Domain;

use super::power_profile::PowerProfile;
use super::script_toml::ScriptToml;

/// Why a script is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseScriptError {
    /// It is no TOML, or a field has the wrong type or name. The text shows the line.
    #[error("{0}")]
    Syntax(String),
    /// A field's value makes no sense.
    #[error("line {line}: domain {domain:?}: field `{field}`: {reason}")]
    Value {
        /// The line on which the domain begins.
        line: usize,
        /// The domain.
        domain: String,
        /// The field.
        field: &'static str,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// There is nothing in it.
    #[error("there is no [[domain]]")]
    Empty,
}

/// A machine that exists only on paper.
#[derive(Debug, Clone, PartialEq)]
pub struct Script {
    /// Its domains, in the order of the description.
    pub domains: Vec<SimulatedDomain>,
}

/// One simulated domain.
#[derive(Debug, Clone, PartialEq)]
pub struct SimulatedDomain {
    /// Its description, as for real ones.
    pub domain: Domain,
    /// The truth.
    pub profile: PowerProfile,
    /// How often the counter moves.
    pub update_ns: u64,
    /// Each update comes late by up to this much; less than `update_ns`.
    pub jitter_ns: u64,
    /// The counter is at 0 again after so many steps.
    pub wrap_counts: Option<u64>,
    /// The counter stays at 0.
    pub stuck: bool,
    /// The first update comes so long after the start.
    pub phase_ns: u64,
    /// The hardware tells the instant of each update.
    pub stamped: bool,
    /// The counter does not answer in this time after the start.
    pub unavailable_ns: Option<Range<u64>>,
    /// The counter begins at 0 again at this time after the start.
    pub reset_ns: Option<u64>,
}

/// What a simulated counter shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimulatedCount {
    /// The count, in steps of the domain's `quantum_uj`.
    pub raw: u64,
    /// The instant of the update, where the hardware tells it.
    pub stamp_ns: Option<u64>,
}

impl Script {
    /// Reads a description.
    ///
    /// # Errors
    /// With the line and the field that is wrong.
    pub fn parse(text: &str) -> Result<Script, ParseScriptError> {
        let machine: ScriptToml =
            toml::from_str(text).map_err(|error| ParseScriptError::Syntax(error.to_string()))?;
        machine.into_script(text)
    }

    /// The true energy of a domain from the start until `since_start_ns`, in nanojoules, cut to whole ones; what its
    /// counter would show if it were perfect. 0 for a domain that is not there.
    pub fn true_energy_nj(&self, domain: usize, since_start_ns: u64) -> u128 {
        self.domains.get(domain).map_or(0, |domain| domain.profile.energy_pj(since_start_ns) / 1_000)
    }
}

impl SimulatedDomain {
    /// What the counter shows `since_start_ns` after the start; `None` while it is away.
    pub fn count_at(&self, since_start_ns: u64) -> Option<SimulatedCount> {
        if self.unavailable_ns.as_ref().is_some_and(|away| away.contains(&since_start_ns)) {
            return None;
        }
        let reset_ns = self.reset_ns.filter(|reset_ns| *reset_ns <= since_start_ns).unwrap_or(0);
        let update_ns = since_start_ns
            .checked_sub(self.domain.latency_ns)
            .and_then(|seen_ns| self.last_update_ns(seen_ns))
            .unwrap_or(0)
            .max(reset_ns);
        let energy_pj = self.profile.energy_pj(update_ns) - self.profile.energy_pj(reset_ns);
        let counts =
            if self.stuck { 0 } else { energy_pj / (u128::from(self.domain.quantum_uj) * 1_000_000) };
        let raw = match self.wrap_counts {
            Some(wrap_counts) => counts % u128::from(wrap_counts),
            None => counts,
        };
        let stamp_ns = self.stamped.then_some(update_ns);
        Some(SimulatedCount { raw: u64::try_from(raw).unwrap_or(u64::MAX), stamp_ns })
    }

    /// The last update at or before `seen_ns`; `None` before the first.
    fn last_update_ns(&self, seen_ns: u64) -> Option<u64> {
        let nth = seen_ns.checked_sub(self.phase_ns)? / self.update_ns;
        let late_ns = |nth: u64| splitmix64(nth) % (self.jitter_ns + 1);
        let at = |nth: u64| (self.phase_ns + nth * self.update_ns).saturating_add(late_ns(nth));
        if at(nth) <= seen_ns { Some(at(nth)) } else { nth.checked_sub(1).map(at) }
    }
}

/// A number that looks random and is always the same for `nth` (the finaliser of SplitMix64).
fn splitmix64(nth: u64) -> u64 {
    let mut bits = nth.wrapping_add(0x9E37_79B9_7F4A_7C15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}
