//! The attributor's settings, requests and errors.
//!
//! Times are nanoseconds of the monotonic clock.

use std::collections::BTreeMap;

use super::virtual_energy::WEIGHT_ONE;

/// Settings of the attributor.
#[derive(Debug, Clone)]
pub struct AttributionSettings {
    /// How late a message may come and still take effect at its own time: the time before `now - horizon_ns` is
    /// settled.
    pub horizon_ns: u64,
    /// A domain whose counter has not moved for this long, or for ten of its update intervals if that is longer, no
    /// longer delays accounts: its time counts as unknown.
    pub counter_timeout_ns: u64,
    /// The maximum number of unsettled spans, all users together.
    pub max_open_spans: usize,
    /// The maximum number of pending edges (openings, closings, phases, changes of weight).
    pub max_pending_edges: usize,
    /// The maximum number of unsettled changes of weight of one span.
    pub max_pending_weight_changes: u64,
    /// Configured idle power by domain name, milliwatts. The idle power of other domains is learned.
    pub idle_mw: BTreeMap<String, u64>,
}

impl Default for AttributionSettings {
    fn default() -> Self {
        Self {
            horizon_ns: 10_000_000,
            counter_timeout_ns: 2_000_000_000,
            max_open_spans: 131_072,
            max_pending_edges: 131_072,
            max_pending_weight_changes: 1024,
            idle_mw: BTreeMap::new(),
        }
    }
}

/// A span's key in the attributor: its slot, and its number among all spans, so that a key is never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpanKey(pub u64);

impl SpanKey {
    pub(crate) fn new(slot: u32, number: u32) -> Self {
        SpanKey(u64::from(number) << 32 | u64::from(slot))
    }

    pub(crate) fn slot(self) -> u32 {
        (self.0 & 0xffff_ffff) as u32
    }

    pub(crate) fn number(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// A span to open.
#[derive(Debug, Clone)]
pub struct NewSpan {
    /// The span's ID in the protocol.
    pub span_id: String,
    /// The client's name for it.
    pub name: String,
    /// Repeated in the account.
    pub attributes: BTreeMap<String, String>,
    /// Its weight: 0, or from 1/65536 to 1e6.
    pub weight: f64,
    /// The indices of its domains; `None`: all that are live or starting.
    pub domains: Option<Vec<usize>>,
    /// The opening that the client requested.
    pub at_ns: u64,
    /// The owner's user id.
    pub uid: u32,
    /// The wall time of the opening.
    pub opened_unix_ns: u64,
    /// The number of its subject, from [`Attributor::add_subject`](super::Attributor::add_subject); 0: none.
    pub subject: u32,
}

impl NewSpan {
    /// A span of weight 1 over all live domains, without name, attributes or subject.
    pub fn new(span: impl Into<String>, at_ns: u64) -> Self {
        Self {
            span_id: span.into(),
            name: String::new(),
            attributes: BTreeMap::new(),
            weight: 1.0,
            domains: None,
            at_ns,
            uid: 0,
            opened_unix_ns: 0,
            subject: 0,
        }
    }
}

/// A subject whose use of the domains is sampled: a process with its descendants, or a control group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    /// The process at the root.
    pub process: Option<u32>,
    /// The control group's path.
    pub cgroup: Option<String>,
    /// The reason why its use is unknown; `None` if it is known.
    pub reason: Option<String>,
}

/// A subject's cumulative use of a basis at the time of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubjectUsage {
    /// As [`Attributor::add_subject`](super::Attributor::add_subject) returned it.
    pub subject: u32,
    /// The cumulative use, in the basis's unit; `None`: unknown.
    pub amount: Option<u64>,
    /// Whether it has no process in common with the other disjoint subjects.
    pub disjoint: bool,
}

/// A sample of the cumulative use of a basis.
#[derive(Debug, Clone, Copy)]
pub struct BasisUsageSample<'a> {
    /// The time of the sample.
    pub at_ns: u64,
    /// The basis: [`CPU_TIME`](super::CPU_TIME), or one of [`Attributor::set_basis`](super::Attributor::set_basis).
    pub basis: usize,
    /// The use by all processes, in the basis's unit; `None`: unknown.
    pub total: Option<u64>,
    /// The use by each subject. A subject that is left out used nothing since the previous sample.
    pub subjects: &'a [SubjectUsage],
}

/// Why the attributor rejected a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttributionError {
    /// The key belongs to no unsettled span.
    #[error("no such span")]
    NoSuchSpan,
    /// The span is closed.
    #[error("the span is already closed")]
    AlreadyClosed,
    /// An edge before the span's opening.
    #[error("the time lies outside {earliest_ns}..={latest_ns} ns")]
    InvalidTime {
        /// The earliest valid time.
        earliest_ns: u64,
        /// The latest valid time.
        latest_ns: u64,
    },
    /// A value out of range.
    #[error("{field}: {reason}")]
    InvalidValue {
        /// The name of the field.
        field: &'static str,
        /// The reason, for the client.
        reason: String,
    },
    /// The attributor has no room for it.
    #[error("the limit of {limit} {quota} is reached")]
    LimitReached {
        /// What is limited, in words: "open spans".
        quota: &'static str,
        /// The maximum, in units of `quota`.
        limit: usize,
    },
}

/// The maximum weight of a span.
const MAX_SPAN_WEIGHT: f64 = 1e6;

/// A client's weight in units of 2^-16.
#[inline]
pub(crate) fn weight_units(weight: f64) -> Result<u64, AttributionError> {
    if weight == 1.0 { Ok(WEIGHT_ONE) } else { checked_weight_units(weight) }
}

#[cold]
fn checked_weight_units(weight: f64) -> Result<u64, AttributionError> {
    let refuse =
        |reason: &str| Err(AttributionError::InvalidValue { field: "weight", reason: reason.into() });
    if !weight.is_finite() || weight < 0.0 {
        return refuse("must be a finite number of at least 0; omit it for a weight of 1");
    }
    if weight > MAX_SPAN_WEIGHT {
        return refuse("must be at most 1000000: scale all weights down together, only their ratios count");
    }
    let units = (weight * WEIGHT_ONE as f64).round() as u64;
    if units == 0 && weight > 0.0 {
        return refuse(
            "must be 0 or at least 1/65536: scale all weights up together, only their ratios count",
        );
    }
    Ok(units)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_weights_are_refused() {
        assert_eq!(weight_units(1.0), Ok(WEIGHT_ONE));
        assert_eq!(weight_units(0.0), Ok(0));
        assert_eq!(weight_units(2.5), Ok(WEIGHT_ONE * 5 / 2));
        assert_eq!(weight_units(1.0 / 65_536.0), Ok(1));
        for odd in [-1.0, f64::NAN, f64::INFINITY, 1e6 + 1.0, 1e-9] {
            assert!(
                matches!(weight_units(odd), Err(AttributionError::InvalidValue { field: "weight", .. })),
                "{odd}"
            );
        }
    }
}
