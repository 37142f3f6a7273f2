//! A simulated machine, computed from a description.
//!
//! ```toml
//! name = "one package"             # optional
//!
//! [[domain]]
//! name = "package-0"
//! kind = "package"                 # psys package core uncore dram gpu gpu-memory npu soc module battery cpu
//! profile = [[1.0, 40], [0.5, 180]] # seconds and watts, repeating
//! parent = "psys"                  # optional, like all following keys; the values are the defaults
//! device = "GPU-…"
//! grade = "measured"               # measured modelled integrated estimated
//! ceiling_w = 250                  # default: unknown
//! update_ns = 1_000_000            # update interval of the counter
//! phase_ns = 0                     # delay of the first update
//! jitter_ns = 0                    # largest random delay of each update
//! latency_ns = 0                   # delay from an update to its visibility
//! quantum_uj = 1                   # step of the counter
//! wrap_uj = 262_144_000_000        # the counter wraps to 0 at this energy; default: never
//! stamped = false                  # the hardware gives the instant of each update
//! stuck = false                    # the counter never advances
//! lost_at_s = 5.0                  # unavailable from this time
//! back_at_s = 6.0                  # until this time; default: for ever
//! reset_at_s = 9.0                 # the counter restarts at 0 at this time
//! ```
//!
//! Owns the description, the check of its values, and the counter of each domain at an instant after the machine's start.
//! The counter is the exact integral of the power at its last update, truncated to whole steps. Invariant: a parsed script
//! computes without overflow for any instant. Every error has the line of the domain and the field. Reads no clock.

use std::ops::{Range, RangeInclusive};

use serde::Deserialize;
use toml::Spanned;

use crate::domain::{Domain, DomainKind, Grade};

use super::power_profile::PowerProfile;

/// The reason why a script is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseScriptError {
    /// Invalid TOML, or a field with a wrong type or name. The text contains the line.
    #[error("{0}")]
    Syntax(String),
    /// A field with an invalid value.
    #[error("line {line}: domain {domain:?}: field `{field}`: {reason}")]
    Value {
        /// The line on which the domain begins.
        line: usize,
        /// Its `name` in the script.
        domain: String,
        /// The key in the table of the domain.
        field: &'static str,
        /// The error and the accepted values.
        reason: String,
    },
    /// A script without domains.
    #[error("the script has no [[domain]]")]
    Empty,
}

/// The description of a machine with known power.
#[derive(Debug, Clone, PartialEq)]
pub struct Script {
    /// Its domains, in the order of the description.
    pub domains: Vec<SimulatedDomain>,
}

/// A domain whose energy is computed from its power, and whose counter moves as described.
#[derive(Debug, Clone, PartialEq)]
pub struct SimulatedDomain {
    /// Its description, as for real domains.
    pub domain: Domain,
    /// Its power over time, from which the true energy follows.
    pub profile: PowerProfile,
    /// The update interval of the counter.
    pub update_ns: u64,
    /// The largest random delay of an update; less than `update_ns`.
    pub jitter_ns: u64,
    /// The number of steps after which the counter wraps to 0.
    pub wrap_counts: Option<u64>,
    /// The counter stays at 0.
    pub stuck: bool,
    /// The delay of the first update after the start.
    pub phase_ns: u64,
    /// Whether the hardware gives the instant of each update.
    pub stamped: bool,
    /// The time after the start in which the counter is unavailable.
    pub unavailable_ns: Option<Range<u64>>,
    /// The time after the start at which the counter restarts at 0.
    pub reset_ns: Option<u64>,
}

/// The value of a simulated counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SimulatedCount {
    /// The count, in steps of the domain's `quantum_uj`.
    pub raw: u64,
    /// The instant of the update, if the hardware gives it.
    pub stamp_ns: Option<u64>,
}

impl Script {
    /// Parses a description.
    ///
    /// # Errors
    /// The description is invalid; the error has the line and the field.
    pub fn parse(text: &str) -> Result<Script, ParseScriptError> {
        let machine: ScriptToml =
            toml::from_str(text).map_err(|error| ParseScriptError::Syntax(error.to_string()))?;
        machine.into_script(text)
    }

    /// The true energy of a domain from the start until `since_start_ns`, in nanojoules, rounded down. 0 for an unknown
    /// domain.
    pub fn true_energy_nj(&self, domain: usize, since_start_ns: u64) -> u128 {
        self.domains.get(domain).map_or(0, |domain| domain.profile.energy_pj(since_start_ns) / 1_000)
    }
}

impl SimulatedDomain {
    /// The counter's value `since_start_ns` after the start; `None` while it is unavailable.
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

/// A pseudo-random number that depends only on `nth` (the finaliser of SplitMix64).
fn splitmix64(nth: u64) -> u64 {
    let mut bits = nth.wrapping_add(0x9E37_79B9_7F4A_7C15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

/// Longest accepted time, so that nanoseconds never overflow: ten years.
const MAX_TIME_S: f64 = 315_360_000.0;

/// Highest accepted power: a megawatt.
const MAX_POWER_W: f64 = 1e6;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ScriptToml {
    #[serde(rename = "name")]
    _name: Option<String>,
    #[serde(default)]
    domain: Vec<Spanned<DomainToml>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DomainToml {
    name: String,
    kind: DomainKind,
    parent: Option<String>,
    device: Option<String>,
    grade: Option<Grade>,
    ceiling_w: Option<f64>,
    update_ns: Option<u64>,
    phase_ns: Option<u64>,
    jitter_ns: Option<u64>,
    latency_ns: Option<u64>,
    quantum_uj: Option<u64>,
    wrap_uj: Option<u64>,
    profile: Vec<(f64, f64)>,
    #[serde(default)]
    stamped: bool,
    #[serde(default)]
    stuck: bool,
    lost_at_s: Option<f64>,
    back_at_s: Option<f64>,
    reset_at_s: Option<f64>,
}

impl ScriptToml {
    /// The machine of this description, which was parsed from `text`.
    fn into_script(self, text: &str) -> Result<Script, ParseScriptError> {
        if self.domain.is_empty() {
            return Err(ParseScriptError::Empty);
        }
        let mut domains: Vec<SimulatedDomain> = Vec::with_capacity(self.domain.len());
        for described in self.domain {
            let before = text.get(..described.span().start).unwrap_or("");
            let line = before.matches('\n').count() + 1;
            let described = described.into_inner();
            let name = described.name.clone();
            let taken = domains.iter().any(|other| other.domain.name == name);
            let simulated =
                if taken { Err(("name", "is used twice".into())) } else { described.into_simulated() };
            domains.push(simulated.map_err(|(field, reason)| ParseScriptError::Value {
                line,
                domain: name,
                field,
                reason,
            })?);
        }
        Ok(Script { domains })
    }
}

/// A field and the reason why it is invalid.
type FieldError = (&'static str, String);

impl DomainToml {
    fn into_simulated(self) -> Result<SimulatedDomain, FieldError> {
        if self.name.is_empty() {
            return Err(("name", "must not be empty".into()));
        }
        let ceiling_mw = self.ceiling_w.map(|watts| milliwatts("ceiling_w", watts)).transpose()?;
        let profile = self.profile(ceiling_mw)?;
        let quantum_uj = check_range("quantum_uj", self.quantum_uj.unwrap_or(1), 1..=1_000_000_000)?;
        let update_ns =
            check_range("update_ns", self.update_ns.unwrap_or(1_000_000), 1_000..=1_000_000_000_000)?;
        let away_ns = self.unavailable_ns()?;
        Ok(SimulatedDomain {
            wrap_counts: self.wrap_uj.map(|wrap_uj| wrap_counts(wrap_uj, quantum_uj)).transpose()?,
            jitter_ns: check_range("jitter_ns", self.jitter_ns.unwrap_or(0), 0..=update_ns - 1)?,
            phase_ns: check_range("phase_ns", self.phase_ns.unwrap_or(0), 0..=1_000_000_000_000)?,
            reset_ns: self.reset_at_s.map(|seconds| nanoseconds("reset_at_s", seconds)).transpose()?,
            stamped: self.stamped,
            stuck: self.stuck,
            update_ns,
            unavailable_ns: away_ns,
            profile,
            domain: Domain {
                name: self.name,
                kind: self.kind,
                source: crate::domain::REPLAY_SOURCE.into(),
                device: self.device,
                parent: self.parent,
                grade: self.grade.unwrap_or(Grade::Measured),
                ceiling_mw,
                latency_ns: check_range("latency_ns", self.latency_ns.unwrap_or(0), 0..=1_000_000_000_000)?,
                quantum_uj,
            },
        })
    }

    fn profile(&self, ceiling_mw: Option<u64>) -> Result<PowerProfile, FieldError> {
        let mut steps = Vec::with_capacity(self.profile.len());
        for &(seconds, watts) in &self.profile {
            steps.push((nanoseconds("profile", seconds)?, milliwatts("profile", watts)?));
        }
        let profile =
            PowerProfile::new(steps).ok_or(("profile", "must last longer than 0 seconds".to_owned()))?;
        match ceiling_mw {
            Some(ceiling_mw) if profile.peak_mw() > ceiling_mw => {
                Err(("profile", format!("reaches {} mW, above ceiling_w", profile.peak_mw())))
            }
            _ => Ok(profile),
        }
    }

    fn unavailable_ns(&self) -> Result<Option<Range<u64>>, FieldError> {
        let back_ns = self.back_at_s.map(|seconds| nanoseconds("back_at_s", seconds)).transpose()?;
        let Some(lost_at_s) = self.lost_at_s else {
            return back_ns.map_or(Ok(None), |_| Err(("back_at_s", "needs lost_at_s".into())));
        };
        let lost_ns = nanoseconds("lost_at_s", lost_at_s)?;
        let back_ns = back_ns.unwrap_or(u64::MAX);
        if back_ns <= lost_ns {
            return Err(("back_at_s", "must be later than lost_at_s".into()));
        }
        Ok(Some(lost_ns..back_ns))
    }
}

fn wrap_counts(wrap_uj: u64, quantum_uj: u64) -> Result<u64, FieldError> {
    if wrap_uj < 2 * quantum_uj || !wrap_uj.is_multiple_of(quantum_uj) {
        return Err((
            "wrap_uj",
            format!("must be a multiple of quantum_uj ({quantum_uj}) and at least twice as large"),
        ));
    }
    Ok(wrap_uj / quantum_uj)
}

fn check_range(field: &'static str, value: u64, range: RangeInclusive<u64>) -> Result<u64, FieldError> {
    if range.contains(&value) {
        return Ok(value);
    }
    Err((field, format!("is {value}, must be from {} to {}", range.start(), range.end())))
}

fn nanoseconds(field: &'static str, seconds: f64) -> Result<u64, FieldError> {
    to_scaled(field, seconds, MAX_TIME_S, 1e9, "seconds")
}

fn milliwatts(field: &'static str, watts: f64) -> Result<u64, FieldError> {
    to_scaled(field, watts, MAX_POWER_W, 1e3, "watts")
}

fn to_scaled(field: &'static str, value: f64, max: f64, scale: f64, unit: &str) -> Result<u64, FieldError> {
    if !(0.0..=max).contains(&value) {
        return Err((field, format!("is {value}, must be from 0 to {max} {unit}")));
    }
    // In range by the check above: at most 3.2e17, which u64 and the f64's own precision of 32 ns hold.
    Ok((value * scale).round() as u64)
}
