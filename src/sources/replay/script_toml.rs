//! The words of a script, and what they may say.
//!
//! Owns the shape of the TOML (see `script`) and the check of every value. Invariant: a machine that comes out of
//! here computes without overflow for any instant. Every refusal names the line of the domain and the field.

use std::ops::{Range, RangeInclusive};

use serde::Deserialize;
use toml::Spanned;

use crate::domain::{Domain, DomainKind, Grade};

use super::power_profile::PowerProfile;
use super::script::{ParseScriptError, Script, SimulatedDomain};

/// Longest time that a script may name, so that nanoseconds never overflow: ten years.
const MAX_TIME_S: f64 = 315_360_000.0;

/// Highest power that a script may name: a megawatt.
const MAX_POWER_W: f64 = 1e6;

/// A machine as it is described.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScriptToml {
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
    /// The machine that is described in `text`, of which this was read.
    pub fn into_script(self, text: &str) -> Result<Script, ParseScriptError> {
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

/// A field and what is wrong with it.
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
            format!("must be a multiple of quantum_uj ({quantum_uj}), at least twice it"),
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
