//! A sweep: runs of the same questions at several concurrencies, models and servers, and which of them are worth it.
//!
//! A point is a run in its steady state, with its latency, its energy of an output token, its IPW, and what limits it, by
//! facts that were measured. Invariant: a point is on a front if no other point is at least as good in both figures and
//! better in one; a figure that is unknown or withheld puts no point on a front.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::metrics::{EfficiencyMetrics, Estimate, MetricOptions, compute_metrics, compute_metrics_over};
use super::report::format::format_significant;
use super::row::QueryRow;
use super::run_dir::{self, Manifest, RunDirError};
use super::statistics::distribution;
use super::steady_state::SteadyQueries;
use super::table::{RunTable, known};

/// Which latency of the answered queries counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LatencyMeasure {
    /// The median
    P50,
    /// The 95th percentile
    P95,
    /// The 99th percentile
    P99,
}

impl LatencyMeasure {
    pub fn name(self) -> &'static str {
        match self {
            Self::P50 => "p50",
            Self::P95 => "p95",
            Self::P99 => "p99",
        }
    }
}

/// How busy the client was, as the sweep stores it beside a run.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct ClientLoad {
    /// CPU time of the thread that asks.
    pub cpu_ns: u64,
    /// The time in which it asked.
    pub wall_ns: u64,
}

/// The file of [`ClientLoad`] in the directory of a run.
pub const CLIENT_LOAD_FILE: &str = "client.json";

/// What limits a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LimitKind {
    /// The client had no CPU time left.
    Client,
    /// A domain drew as much power as it may.
    PowerLimit,
    /// The throughput did not grow with the concurrency.
    Server,
    /// The throughput still grows with the concurrency.
    Concurrency,
    /// The meter's guaranteed error is too large.
    MeterError,
    /// Too few queries were measured.
    Coverage,
}

/// A limit of a point with the measured facts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PointLimit {
    pub kind: LimitKind,
    pub fact: String,
}

/// One point of a sweep.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SweepPoint {
    /// The directory of the run.
    pub run: String,
    pub model: String,
    /// The base URL of the server.
    pub server: String,
    pub concurrency: usize,
    /// Whether the figures are those of the steady state: at one query at a time all queries are in it.
    pub steady: bool,
    pub figures: EfficiencyMetrics,
    /// The latency of the answered queries, from the request to the end of the answer, seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_s: Option<f64>,
    /// Output tokens per second of all concurrent queries together: concurrency × tokens / time. Only of a steady state:
    /// elsewhere fewer queries are open than `concurrency`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
    /// Energy of an output token, joules.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_j: Option<Estimate>,
    /// Whether no other point has less energy of a token at no higher latency.
    pub on_energy_front: bool,
    /// Whether no other point has a higher IPW at no higher latency.
    pub on_ipw_front: bool,
    pub limits: Vec<PointLimit>,
    /// The domain that was nearest to its limit of power: name, mean power and limit, watts.
    #[serde(skip)]
    nearest_limit: Option<(String, f64, f64)>,
    #[serde(skip)]
    client_load: Option<ClientLoad>,
}

/// The points that are best within a bound of the latency, as indices.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BestPoints {
    pub latency_bound_s: f64,
    /// The least energy of a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub energy: Option<usize>,
    /// The highest IPW.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipw: Option<usize>,
}

/// A sweep with its fronts and limits.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SweepReport {
    pub latency: LatencyMeasure,
    pub points: Vec<SweepPoint>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best: Option<BestPoints>,
}

/// Above this part of a CPU, the thread that asks limits the point.
const MAX_CLIENT_LOAD: f64 = 0.8;

/// From this part of its limit on, a domain's mean power is at the limit.
const AT_POWER_LIMIT: f64 = 0.95;

/// Throughput that grows by less than this part of the growth of the concurrency does not grow.
const MIN_GROWTH: f64 = 0.1;

/// A relative error of the meter above which it limits what the point shows.
const MAX_METER_ERROR: f64 = 0.1;

impl SweepPoint {
    /// Reads a run as a point.
    ///
    /// # Errors
    /// A file of the run cannot be read.
    pub fn read(
        run: &Path,
        latency: LatencyMeasure,
        options: &MetricOptions,
        allow_partial: bool,
    ) -> Result<Self, RunDirError> {
        let table = RunTable::read(run)?;
        let all = compute_metrics(&table, None, options);
        let concurrency = all.concurrency.unwrap_or(1);
        let steady = SteadyQueries::find(&table.columns, concurrency).filter(|it| !it.queries.is_empty());
        let is_steady = concurrency == 1 || steady.is_some();
        let queries: Vec<usize> = match steady {
            Some(steady) => steady.queries.iter().map(|at| *at as usize).collect(),
            None => (0..table.columns.len()).collect(),
        };
        let mut figures = compute_metrics_over(&table, "steady state", queries.iter().copied(), options);
        if !is_steady || concurrency == 1 {
            figures.of = "all".into();
        }
        figures.partial |= all.partial;
        if !allow_partial {
            figures.withhold_if_partial();
        }
        let manifest = &table.manifest;
        let client_load = std::fs::read(run.join(CLIENT_LOAD_FILE)).ok();
        let mut point = Self {
            run: run.display().to_string(),
            model: manifest.model.clone(),
            server: manifest.server.clone(),
            concurrency,
            steady: is_steady,
            latency_s: latency_s(&table, &queries, latency),
            tokens_per_second: is_steady.then(|| tokens_per_second(&table, &queries, concurrency)).flatten(),
            token_j: figures.tokens_per_joule.filter(|_| !figures.withheld).map(inverse),
            figures,
            on_energy_front: false,
            on_ipw_front: false,
            limits: Vec::new(),
            nearest_limit: nearest_power_limit(run, manifest)?,
            client_load: client_load.and_then(|text| serde_json::from_slice(&text).ok()),
        };
        point.limits = point.own_limits();
        Ok(point)
    }

    /// Returns the limits that the run alone shows.
    fn own_limits(&self) -> Vec<PointLimit> {
        let mut limits = Vec::new();
        let figures = &self.figures;
        if figures.partial {
            let fact =
                format!("{} of {} queries have an answer and an energy", figures.covered, figures.asked);
            limits.push(PointLimit { kind: LimitKind::Coverage, fact });
        }
        let client = self.client_load.map(|load| load.cpu_ns as f64 / load.wall_ns.max(1) as f64);
        if let Some(load) = client.filter(|load| *load > MAX_CLIENT_LOAD) {
            let fact = format!("the thread that asks used {} % of a CPU", format_significant(load * 100.0));
            limits.push(PointLimit { kind: LimitKind::Client, fact });
        }
        if let Some((domain, mean_w, limit_w)) = &self.nearest_limit
            && *mean_w >= AT_POWER_LIMIT * limit_w
        {
            let (mean_w, limit_w) = (format_significant(*mean_w), format_significant(*limit_w));
            let fact = format!("{domain} drew {mean_w} W of {limit_w} W");
            limits.push(PointLimit { kind: LimitKind::PowerLimit, fact });
        }
        let relative = figures.energy_error_j.zip(figures.energy_j).map(|(error, of)| error / of.value);
        if let Some(error) = relative.filter(|error| error.abs() > MAX_METER_ERROR) {
            let fact = format!("the meter's error is \u{b1} {} %", format_significant(error.abs() * 100.0));
            limits.push(PointLimit { kind: LimitKind::MeterError, fact });
        }
        limits
    }
}

impl SweepReport {
    /// Computes fronts, limits and the best points within a bound.
    pub fn new(mut points: Vec<SweepPoint>, latency: LatencyMeasure, latency_bound_s: Option<f64>) -> Self {
        let of_energy = |point: &SweepPoint| Some([point.latency_s?, point.token_j?.value]);
        // A higher IPW is better.
        let of_ipw = |point: &SweepPoint| Some([point.latency_s?, -point.figures.per_watt?.value]);
        let energies: Vec<_> = points.iter().map(of_energy).collect();
        let ipws: Vec<_> = points.iter().map(of_ipw).collect();
        for (point, on_front) in points.iter_mut().zip(pareto_front(&energies)) {
            point.on_energy_front = on_front;
        }
        for (point, on_front) in points.iter_mut().zip(pareto_front(&ipws)) {
            point.on_ipw_front = on_front;
        }
        let growth: Vec<_> = (0..points.len()).map(|at| growth_limit(&points, at)).collect();
        for (point, growth) in points.iter_mut().zip(growth) {
            point.limits.extend(growth);
        }
        let best = latency_bound_s.map(|bound_s| {
            let least = |of: &[Option<[f64; 2]>]| {
                let within = |at: &usize| of[*at].is_some_and(|[latency, _]| latency <= bound_s);
                let cost = |at: &usize| of[*at].map_or(f64::INFINITY, |[_, cost]| cost);
                (0..of.len()).filter(within).min_by(|one, other| cost(one).total_cmp(&cost(other)))
            };
            BestPoints { latency_bound_s: bound_s, energy: least(&energies), ipw: least(&ipws) }
        });
        Self { latency, points, best }
    }
}

/// Returns which points are on the Pareto front, both values being better the lower they are.
pub fn pareto_front(points: &[Option<[f64; 2]>]) -> Vec<bool> {
    let mut order: Vec<(usize, [f64; 2])> = points
        .iter()
        .enumerate()
        .filter_map(|(at, point)| Some((at, point.filter(|it| it.iter().all(|value| value.is_finite()))?)))
        .collect();
    order.sort_by(|(_, one), (_, other)| one[0].total_cmp(&other[0]).then(one[1].total_cmp(&other[1])));
    let mut on_front = vec![false; points.len()];
    let (mut best, mut of_best) = (f64::INFINITY, f64::NEG_INFINITY);
    for (at, [latency, cost]) in order {
        // Points before this one have no higher latency; an equal one does not dominate it.
        let is_equal = cost == best && latency == of_best;
        if cost < best || is_equal {
            on_front[at] = true;
            (best, of_best) = (cost, latency);
        }
    }
    on_front
}

/// Returns what the throughput shows beside that of the next lower concurrency of the same model and server; at the lowest
/// one, beside the next higher.
fn growth_limit(points: &[SweepPoint], at: usize) -> Option<PointLimit> {
    let own = &points[at];
    let same = || {
        points.iter().filter(|other| {
            (&other.model, &other.server) == (&own.model, &own.server)
                && other.concurrency != own.concurrency
                && other.tokens_per_second.is_some()
        })
    };
    let lower = same().filter(|it| it.concurrency < own.concurrency).max_by_key(|it| it.concurrency);
    let higher = same().filter(|it| it.concurrency > own.concurrency).min_by_key(|it| it.concurrency);
    // What the next higher concurrency gains shows more than what this one gained.
    let (low, high) = match (lower, higher) {
        (_, Some(higher)) => (own, higher),
        (Some(lower), None) => (lower, own),
        (None, None) => return None,
    };
    let [slow, fast] = [low.tokens_per_second?, high.tokens_per_second?];
    let gain = (fast / slow - 1.0) / (high.concurrency as f64 / low.concurrency as f64 - 1.0);
    let fact = format!(
        "{} at once give {} tokens/s, and {} give {}",
        low.concurrency,
        format_significant(slow),
        high.concurrency,
        format_significant(fast)
    );
    let kind = if gain < MIN_GROWTH { LimitKind::Server } else { LimitKind::Concurrency };
    Some(PointLimit { kind, fact })
}

fn latency_s(table: &RunTable, queries: &[usize], measure: LatencyMeasure) -> Option<f64> {
    let columns = &table.columns;
    let answered = queries.iter().filter(|at| columns.answered[**at]);
    let durations = distribution(answered.map(|at| columns.duration_s[*at]), 1e9)?;
    Some(match measure {
        LatencyMeasure::P50 => durations.p50,
        LatencyMeasure::P95 => durations.p95,
        LatencyMeasure::P99 => durations.p99,
    })
}

/// Returns the throughput by Little's law: with `concurrency` open queries, it is that times the mean tokens of a query
/// over its mean time.
fn tokens_per_second(table: &RunTable, queries: &[usize], concurrency: usize) -> Option<f64> {
    let columns = &table.columns;
    let delivered = || queries.iter().filter(|at| columns.delivered[**at]);
    let tokens: f64 = delivered().filter_map(|at| known(columns.tokens_out[*at])).sum();
    let seconds: f64 = delivered().map(|at| columns.duration_s[*at]).sum();
    (tokens > 0.0 && seconds > 0.0).then(|| concurrency as f64 * tokens / seconds)
}

/// Returns 1 / figure; the ends of the interval change places.
fn inverse(figure: Estimate) -> Estimate {
    let interval = figure.interval.map(|mut it| {
        (it.low, it.high) = (1.0 / it.high, 1.0 / it.low);
        it
    });
    Estimate { value: 1.0 / figure.value, interval }
}

/// Returns the domain whose mean power while queries were open is nearest to the lowest of its limits.
fn nearest_power_limit(run: &Path, manifest: &Manifest) -> Result<Option<(String, f64, f64)>, RunDirError> {
    let mut sums = vec![(0_u64, 0_u64); manifest.domains.len()];
    run_dir::for_each_row(&run.join("rows.jsonl"), |row: QueryRow| {
        let Some(energy) = row.energy else { return };
        for ((window_uj, span_ns), part) in sums.iter_mut().zip(&energy.domains) {
            if let Some(of_query) = part.window_uj {
                *window_uj = window_uj.saturating_add(of_query);
                *span_ns = span_ns.saturating_add(energy.span_ns);
            }
        }
    })?;
    let status = manifest.assumptions.iter().flatten();
    let limits = status.filter_map(|domain| {
        let at = manifest.domains.iter().position(|it| *domain.name == *it.name)?;
        let limit_mw = domain.ceilings.iter().flatten().map(|ceiling| ceiling.limit_mw).min()?;
        let (window_uj, span_ns) = sums[at];
        (span_ns > 0).then(|| {
            let mean_w = window_uj as f64 * 1e3 / span_ns as f64;
            (domain.name.to_string(), mean_w, limit_mw as f64 / 1e3)
        })
    });
    Ok(limits.max_by(|one, other| (one.1 / one.2).total_cmp(&(other.1 / other.2))))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::question;
    use super::super::row::ReplyText;
    use super::super::run_dir::{FORMAT_VERSION, RunDir};
    use super::super::run_settings::CONCURRENCY;
    use super::super::scope::{IdlePolicy, Scope};
    use super::*;

    fn point(concurrency: usize, latency_s: f64, token_j: f64, ipw: f64, tokens: f64) -> SweepPoint {
        let estimate = |value| Some(Estimate { value, interval: None });
        SweepPoint {
            run: concurrency.to_string(),
            model: "m".into(),
            server: "s".into(),
            concurrency,
            steady: true,
            figures: EfficiencyMetrics { per_watt: estimate(ipw), ..EfficiencyMetrics::default() },
            latency_s: Some(latency_s),
            tokens_per_second: Some(tokens),
            token_j: estimate(token_j),
            on_energy_front: false,
            on_ipw_front: false,
            limits: Vec::new(),
            nearest_limit: None,
            client_load: None,
        }
    }

    #[test]
    fn the_fronts_and_the_best_points_within_the_bound_are_those_of_the_definition() {
        let points = vec![
            point(1, 1.0, 5.0, 0.01, 10.0),
            point(2, 1.2, 3.0, 0.008, 19.0),
            point(4, 2.0, 2.0, 0.009, 20.0),
            point(8, 4.0, 2.1, 0.011, 20.5),
        ];
        let report = SweepReport::new(points, LatencyMeasure::P95, Some(2.0));
        let flags: Vec<_> = report.points.iter().map(|it| (it.on_energy_front, it.on_ipw_front)).collect();
        assert_eq!(flags, [(true, true), (true, false), (true, false), (false, true)]);
        let best = report.best.unwrap();
        assert_eq!((best.energy, best.ipw), (Some(2), Some(0)));
        let kinds: Vec<_> = report.points.iter().map(|it| it.limits[0].kind).collect();
        let (server, concurrency) = (LimitKind::Server, LimitKind::Concurrency);
        assert_eq!(kinds, [concurrency, server, server, server]);
        assert_eq!(report.points[1].limits[0].fact, "2 at once give 19.00 tokens/s, and 4 give 20.00");
        let none = SweepReport::new(vec![point(1, 3.0, 1.0, 1.0, 1.0)], LatencyMeasure::P95, Some(2.0));
        assert_eq!((none.best.as_ref().unwrap().energy, none.best.unwrap().ipw), (None, None));
    }

    #[test]
    fn a_point_without_a_steady_state_has_no_throughput() {
        let options = MetricOptions { scope: Scope::Host, idle: IdlePolicy::Included };
        let read = |began_ns: [u64; 3]| {
            let dir = tempfile::tempdir().unwrap();
            let questions = question::built_in();
            let manifest = Manifest {
                version: FORMAT_VERSION,
                fingerprint: question::fingerprint(&questions),
                settings: [(CONCURRENCY.to_owned(), "2".to_owned())].into_iter().collect(),
                ..Manifest::default()
            };
            let mut run = RunDir::create(dir.path(), &manifest, &questions).unwrap();
            for (question, began_ns) in questions.iter().zip(began_ns) {
                let row = QueryRow {
                    id: question.id.clone(),
                    score: Some(1.0),
                    began_ns,
                    duration_ns: 1_000_000_000,
                    tokens_out: Some(10),
                    ..QueryRow::default()
                };
                run.append_row(&row, &ReplyText::default()).unwrap();
            }
            SweepPoint::read(dir.path(), LatencyMeasure::P95, &options, true).unwrap()
        };
        let one_at_a_time = read([0, 2_000_000_000, 4_000_000_000]);
        assert_eq!((one_at_a_time.concurrency, one_at_a_time.steady), (2, false));
        assert_eq!(one_at_a_time.tokens_per_second, None);
        let two_at_once = read([0, 0, 1_000_000_000]);
        assert_eq!((two_at_once.steady, two_at_once.tokens_per_second), (true, Some(20.0)));
    }

    #[test]
    fn a_point_states_the_limits_that_were_measured() {
        let mut limited = point(4, 1.0, 1.0, 1.0, 1.0);
        assert_eq!(limited.own_limits(), []);
        limited.client_load = Some(ClientLoad { cpu_ns: 90, wall_ns: 100 });
        limited.nearest_limit = Some(("gpu-0".into(), 296.0, 300.0));
        limited.figures.energy_j = Some(Estimate { value: 2.0, interval: None });
        limited.figures.energy_error_j = Some(0.5);
        (limited.figures.partial, limited.figures.covered, limited.figures.asked) = (true, 3, 9);
        let limits = limited.own_limits();
        let kinds: Vec<_> = limits.iter().map(|it| it.kind).collect();
        let expected = [LimitKind::Coverage, LimitKind::Client, LimitKind::PowerLimit, LimitKind::MeterError];
        assert_eq!(kinds, expected);
        assert_eq!(limits[2].fact, "gpu-0 drew 296.0 W of 300.0 W");
        limited.client_load = Some(ClientLoad { cpu_ns: 70, wall_ns: 100 });
        limited.nearest_limit = Some(("gpu-0".into(), 280.0, 300.0));
        assert_eq!(limited.own_limits().len(), 2);
    }

    proptest! {
        #[test]
        fn the_front_is_that_of_all_pairs(points in proptest::collection::vec(
            proptest::option::weighted(0.9, [0_u8..6, 0_u8..6]), 0..24)) {
            let points: Vec<Option<[f64; 2]>> =
                points.into_iter().map(|point| point.map(|values| values.map(f64::from))).collect();
            let dominates = |one: &[f64; 2], other: &[f64; 2]| {
                one[0] <= other[0] && one[1] <= other[1] && one != other
            };
            let brute_force: Vec<bool> = points
                .iter()
                .map(|point| point.is_some_and(|it| points.iter().flatten().all(|other| !dominates(other, &it))))
                .collect();
            prop_assert_eq!(pareto_front(&points), brute_force);
        }
    }

    #[test]
    fn values_that_are_no_numbers_are_on_no_front() {
        let front =
            pareto_front(&[Some([f64::NAN, 1.0]), Some([1.0, f64::INFINITY]), Some([2.0, 2.0]), None]);
        assert_eq!(front, [false, false, true, false]);
    }
}
