//! The report over a run, for display and for programs.
//!
//! All contents of the table, the HTML page and the JSON are computed here once. Invariant: each energy figure has its
//! grade, scope, idle policy, coverage and error.

pub mod format;
pub mod html_page;
pub mod interval_rows;
pub mod pictures;
pub mod plot_data;
pub mod sweep_page;
pub mod uncertainty;
pub mod units;

use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde::Serialize;

use super::intervals::describe_shortage;
use super::metrics::{EfficiencyMetrics, MIN_COVERAGE, MetricOptions, compute_metrics, compute_metrics_over};
use super::run_dir::{Manifest, NO_METER};
use super::scope::{IdlePolicy, Scope};
use super::statistics::{Distribution, LinearFit, distribution, fit_linear, fit_log_linear};
use super::steady_state::SteadyQueries;
use super::table::{RunTable, known};

/// Prices and emission factors, given by the user.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct EnergyPrices {
    /// Price of a kilowatt-hour, in any currency.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_kwh: Option<f64>,
    /// Grams of CO2 per kilowatt-hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub co2_g_per_kwh: Option<f64>,
}

/// The report over one run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The manifest of the run.
    pub run: Manifest,
    /// The scope of the figures.
    pub scope: Scope,
    /// Whether idle power is included.
    pub idle: IdlePolicy,
    /// Why no delivered query has an energy in this scope, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_energy: Option<String>,
    /// Figures over all queries.
    pub all: EfficiencyMetrics,
    /// Figures of the steady state; absent at one query at a time and if the concurrency was never full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steady_state: Option<SteadyState>,
    /// Figures by subject, sorted by name.
    pub subjects: Vec<EfficiencyMetrics>,
    /// Figures over all queries in the other scopes and idle policies that the machine supports.
    pub scopes: Vec<EfficiencyMetrics>,
    /// Distributions by name: `energy_j`, `power_w`, `attributed_power_w`, `duration_s`, `first_token_s`,
    /// `between_tokens_s`, `tokens_out`.
    pub spreads: BTreeMap<&'static str, Distribution>,
    /// The regressions of the public harness: energy, latency and power against all tokens, time to first token
    /// against prompt tokens.
    pub lines: BTreeMap<&'static str, LinearFit>,
    /// Prefill and decode energies; known only for the host scope with idle energy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phases: Option<PhaseEnergy>,
    /// Total energy and its cost.
    pub sum: Totals,
    /// Reasons of the delivered queries that failed and are wrong, with their counts.
    pub failures: BTreeMap<String, usize>,
    /// Reasons of the queries that were never delivered and are not asked, with their counts.
    pub not_delivered: BTreeMap<String, usize>,
    /// Reasons for missing energies, with their counts.
    pub unmetered: BTreeMap<String, usize>,
    /// Domains of the run without energy for some queries, with the number of those queries.
    pub domain_gaps: BTreeMap<String, usize>,
    /// Domains that became live during the run and are not part of it, with the number of accounts that contain them.
    pub other_domains: BTreeMap<String, usize>,
    /// Number of queries whose totals are lower bounds, because the daemon could not decide whether two domains show
    /// one counter.
    #[serde(skip_serializing_if = "is_zero")]
    pub lower_bounds: usize,
    /// Number of invalid lines in the run's file.
    pub broken_lines: usize,
    /// Fraction of all prompt tokens that were served from the cache; cached prompts use less energy than uncached ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cached_part: Option<f64>,
    /// Points of the charts, sampled if there are many.
    #[serde(skip)]
    pub points: plot_data::PlotData,
}

/// The part of a run in which its concurrency was full, without ramp and drain.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SteadyState {
    /// From the instant at which the concurrency was first full to the last one; of a resumed run the sum over its sessions.
    pub window_s: f64,
    /// The figures of the queries that were open in it from their beginning to their end.
    pub figures: EfficiencyMetrics,
}

/// Energy of prefill and decode, over the queries that have both.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PhaseEnergy {
    /// Number of queries with both.
    pub count: usize,
    pub prefill_j: f64,
    pub decode_j: f64,
    /// Prefill energy per uncached prompt token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefill_j_per_token: Option<f64>,
    /// Decode energy per output token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decode_j_per_token: Option<f64>,
}

/// Totals over the run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Totals {
    /// Number of queries with a known energy, including failed and incorrect ones.
    pub metered: usize,
    /// Their energy in the report's scope, idle energy included.
    pub energy_j: f64,
    /// Price; absent without a price per kilowatt-hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
    /// Emissions; absent without an emission factor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub co2_g: Option<f64>,
}

impl Report {
    /// Computes the report over a run.
    pub fn new(table: &RunTable, options: &MetricOptions, prices: EnergyPrices) -> Self {
        let (all, subjects, scopes) = all_metrics(table, options);
        Self {
            run: table.manifest.clone(),
            scope: options.scope,
            idle: options.idle,
            no_energy: no_energy_reason(table, options),
            steady_state: steady_state(table, all.concurrency, options),
            all,
            subjects,
            scopes,
            spreads: distributions(table, options),
            lines: regressions(table, options),
            phases: phase_energy(table, options),
            sum: totals(table, options.scope, prices),
            failures: table.failures.clone(),
            not_delivered: table.not_delivered.clone(),
            unmetered: table.unmetered.clone(),
            domain_gaps: table.domain_gaps.clone(),
            other_domains: table.other_domains.clone(),
            lower_bounds: table.lower_bounds,
            broken_lines: table.invalid_lines,
            cached_part: cached_token_fraction(table),
            points: plot_data::PlotData::new(table, options),
        }
    }
}

impl Report {
    /// Removes IPW and IPJ wherever too few of the queries are covered.
    pub fn withhold_if_partial(&mut self) {
        let steady_state = self.steady_state.as_mut().map(|steady| {
            // The steady state of a partial run is as little a figure of its questions.
            steady.figures.partial |= self.all.partial;
            &mut steady.figures
        });
        let all = std::iter::once(&mut self.all).chain(steady_state);
        let all = all.chain(&mut self.subjects).chain(&mut self.scopes);
        all.for_each(EfficiencyMetrics::withhold_if_partial);
    }

    /// Returns what a partial coverage means for the figures, if it is partial.
    pub fn partial_notice(&self) -> Option<String> {
        let all = &self.all;
        if !all.partial || all.covered == 0 {
            return None;
        }
        let (least, coverage) = (MIN_COVERAGE * 100.0, (all.coverage * 1000.0).floor() / 10.0);
        let of =
            format!("{} of {} queries, {coverage:.1} %, less than the {least:.0} %", all.covered, all.asked);
        Some(match all.withheld {
            true => {
                format!("no IPW and no IPJ: they would be over {of} that a figure needs (--allow-partial)")
            }
            false => format!("PARTIAL: IPW and IPJ are over {of} that a figure needs"),
        })
    }

    /// Returns the caveats on the run's energies, one sentence each.
    pub fn remarks(&self) -> Vec<String> {
        let asked = self.all.asked;
        let mut all = Vec::new();
        let unscored = self.all.delivered - self.all.scored;
        if unscored > 0 {
            all.push(format!("{unscored} answers have no score yet (wattspan ipw score RUN --judge)"));
        }
        for (name, reason) in self.run.not_live.iter().flatten() {
            all.push(format!("{name}: not live when the run began, and no part of it: {reason}"));
        }
        for (name, count) in &self.domain_gaps {
            all.push(format!(
                "{name}: no energy for {count} of {asked} queries: its counter stood still or was not read meanwhile"
            ));
        }
        for (name, count) in &self.other_domains {
            all.push(format!(
                "{name}: became live during the run ({count} of {asked} queries), and is no part of it"
            ));
        }
        if self.lower_bounds > 0 {
            all.push(format!(
                "the energy of {} of {asked} queries is at least what is shown, and IPW and IPJ at most: the meter did not know \
                 yet whether two of its domains show one counter",
                self.lower_bounds
            ));
        }
        if self.no_energy.is_none() && !self.unmetered.is_empty() {
            let count: usize = self.unmetered.values().sum();
            all.push(format!(
                "{count} delivered queries have no energy: {}",
                format_reasons(&self.unmetered)
            ));
        }
        if self.all.concurrency.is_some_and(|concurrency| concurrency > 1) {
            all.push(match &self.steady_state {
                Some(steady) if steady.figures.asked > 0 => format!(
                    "steady state: {} queries lay wholly within the {} s in which the concurrency was full",
                    steady.figures.asked,
                    format::format_significant(steady.window_s)
                ),
                _ => "steady state: none; no query lay wholly within the time in which the concurrency was full".into(),
            });
        }
        if self.all.without_power > 0 {
            all.push(format!(
                "IPW is not known: the run does not hold the machine's power for {} of {} covered queries; measure again with \
                 this version",
                self.all.without_power, self.all.covered
            ));
        }
        all.extend(self.all.questions_needed.map(describe_shortage));
        all
    }
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// Reasons with their counts.
fn format_reasons(reasons: &BTreeMap<String, usize>) -> String {
    reasons.iter().map(|(reason, count)| format!("{count} \u{d7} {reason}")).collect::<Vec<_>>().join("; ")
}

/// Returns why no delivered query has an energy in the scope; `None` if one has, or if none was delivered.
fn no_energy_reason(table: &RunTable, options: &MetricOptions) -> Option<String> {
    let columns = &table.columns;
    let delivered = || (0..columns.len()).filter(|at| columns.delivered[*at]);
    let watts = columns.attributed_power_w(options.scope, options.idle);
    if delivered().next().is_none() || delivered().any(|at| known(watts(at)).is_some()) {
        return None;
    }
    let any = |joules: &[f64]| delivered().any(|at| known(joules[at]).is_some());
    let names = |all: &mut dyn Iterator<Item = &str>| all.collect::<Vec<_>>().join(", ");
    let domains = &table.manifest.domains;
    Some(match () {
        () if any(columns.scope_columns(options.scope).share) => {
            "the meter knows no idle power (--idle included)".to_owned()
        }
        () if any(columns.scope_columns(Scope::Host).share)
            && options.scope.domain_indices(domains).is_empty() =>
        {
            format!(
                "no domain of the run lies in the scope \"{}\"; it has {} (--scope host)",
                options.scope.title(),
                names(&mut domains.iter().map(|domain| domain.name.as_str()))
            )
        }
        () if !table.unmetered.is_empty() => format_reasons(&table.unmetered),
        () if !table.domain_gaps.is_empty() => format!(
            "the counters of {} stood still or were not read",
            names(&mut table.domain_gaps.keys().map(String::as_str))
        ),
        () if table.manifest.meter == NO_METER => "the run was made without a meter (--without-meter)".into(),
        () => "the run's rows hold none".into(),
    })
}

/// Computes the figures over all queries, by subject, and in every scope and idle policy that the run supports.
fn all_metrics(
    table: &RunTable,
    options: &MetricOptions,
) -> (EfficiencyMetrics, Vec<EfficiencyMetrics>, Vec<EfficiencyMetrics>) {
    let mut wanted: Vec<(Option<usize>, MetricOptions)> = Vec::new();
    for scope in Scope::ALL {
        wanted.extend(
            [IdlePolicy::Included, IdlePolicy::Excluded].map(|idle| (None, MetricOptions { scope, idle })),
        );
    }
    let rows = rows_by_subject(table);
    let mut subjects: Vec<usize> = (0..rows.len()).collect();
    subjects.sort_by_key(|subject| &table.subjects[*subject]);
    if subjects.len() > 1 {
        wanted.extend(subjects.into_iter().map(|subject| (Some(subject), *options)));
    }
    let mut metrics = parallel_map(wanted.len(), |at| match &wanted[at] {
        (None, options) => compute_metrics(table, None, options),
        (Some(subject), options) => {
            let rows = rows[*subject].iter().map(|at| *at as usize);
            compute_metrics_over(table, &table.subjects[*subject], rows, options)
        }
    });
    let subjects = metrics.split_off(Scope::ALL.len() * 2);
    let is_selected = |it: &&EfficiencyMetrics| it.scope == options.scope && it.idle == options.idle;
    let all = metrics.iter().find(is_selected).expect("every scope and policy is among them").clone();
    metrics.retain(|metrics_of| metrics_of.covered > 0);
    (all, subjects, metrics)
}

fn steady_state(
    table: &RunTable,
    concurrency: Option<usize>,
    options: &MetricOptions,
) -> Option<SteadyState> {
    let SteadyQueries { window_s, queries } = SteadyQueries::find(&table.columns, concurrency?)?;
    let queries = queries.iter().map(|at| *at as usize);
    Some(SteadyState { window_s, figures: compute_metrics_over(table, "steady state", queries, options) })
}

/// Returns the indices of each subject's queries.
fn rows_by_subject(table: &RunTable) -> Vec<Vec<u32>> {
    let mut rows = vec![Vec::new(); table.subjects.len()];
    for (at, subject) in table.columns.subject.iter().enumerate() {
        rows[*subject as usize].push(at as u32);
    }
    rows
}

/// Computes jobs on all cores; results are in the order of the jobs.
fn parallel_map<T: Send>(count: usize, compute: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let compute_share = || -> Vec<(usize, T)> {
        let claimed = std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed));
        claimed.take_while(|at| *at < count).map(|at| (at, compute(at))).collect()
    };
    let workers = thread::available_parallelism().map_or(1, NonZero::get).min(count);
    let mut done: Vec<(usize, T)> = thread::scope(|scope| {
        let others: Vec<_> = (1..workers).map(|_| scope.spawn(compute_share)).collect();
        let mut done = compute_share();
        for other in others {
            done.extend(other.join().expect("figures do not panic"));
        }
        done
    });
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

fn distributions(table: &RunTable, options: &MetricOptions) -> BTreeMap<&'static str, Distribution> {
    let columns = &table.columns;
    let joules = columns.energy_j(options.scope, options.idle);
    let answered = |at: &usize| columns.answered[*at];
    let of =
        |column: &[f64], scale| distribution((0..columns.len()).filter(answered).map(|at| column[at]), scale);
    // Energy and power as in the figures: of every query that reached the server, times of those that were answered.
    let delivered = || (0..columns.len()).filter(|at| columns.delivered[*at]);
    let energy = delivered().map(joules);
    let power = delivered().map(columns.power_w(options.scope, options.idle));
    let attributed = delivered().map(columns.attributed_power_w(options.scope, options.idle));
    let all = [
        ("energy_j", distribution(energy, 1e6)),
        ("power_w", distribution(power, 1e3)),
        ("attributed_power_w", distribution(attributed, 1e3)),
        ("duration_s", of(&columns.duration_s, 1e9)),
        ("first_token_s", of(&columns.first_token_s, 1e9)),
        ("between_tokens_s", of(&columns.inter_token_s, 1e9)),
        ("tokens_out", of(&columns.tokens_out, 1.0)),
    ];
    all.into_iter().filter_map(|(name, distribution)| Some((name, distribution?))).collect()
}

fn regressions(table: &RunTable, options: &MetricOptions) -> BTreeMap<&'static str, LinearFit> {
    let columns = &table.columns;
    let joules = columns.energy_j(options.scope, options.idle);
    let pairs = |x: fn(&RunTable, usize) -> f64, y: &dyn Fn(usize) -> f64| {
        let pair = |at: usize| (columns.answered[at]).then(|| (x(table, at), y(at)));
        let all: Vec<_> = (0..columns.len()).filter_map(pair).filter(|(x, y)| (x + y).is_finite()).collect();
        all
    };
    let tokens = |table: &RunTable, at: usize| table.columns.tokens_in[at] + table.columns.tokens_out[at];
    let prompt = |table: &RunTable, at: usize| table.columns.tokens_in[at];
    let power = pairs(tokens, &columns.power_w(options.scope, options.idle));
    let all = [
        ("energy_j by tokens", fit_linear(pairs(tokens, &joules).into_iter())),
        ("duration_s by tokens", fit_linear(pairs(tokens, &|at| columns.duration_s[at]).into_iter())),
        (
            "first_token_s by prompt tokens",
            fit_linear(pairs(prompt, &|at| columns.first_token_s[at]).into_iter()),
        ),
        ("power_w by tokens", fit_linear(power.iter().copied())),
        ("power_w by ln(tokens)", fit_log_linear(power.iter().copied())),
    ];
    all.into_iter().filter_map(|(name, fit)| Some((name, fit?))).collect()
}

/// Accounts have phase energies only for the host's total with idle energy, so other scopes and policies have none.
fn phase_energy(table: &RunTable, options: &MetricOptions) -> Option<PhaseEnergy> {
    if (options.scope, options.idle) != (Scope::Host, IdlePolicy::Included) {
        return None;
    }
    let columns = &table.columns;
    let mut count = 0;
    let (mut prefill_j, mut decode_j) = (0.0, 0.0);
    let (mut uncached_tokens, mut uncached_j, mut output_tokens, mut output_j) = (0.0, 0.0, 0.0, 0.0);
    for at in 0..columns.len() {
        let both = known(columns.prefill_j[at]).zip(known(columns.decode_j[at]));
        let Some((prefill, decode)) = both.filter(|_| columns.answered[at]) else { continue };
        count += 1;
        prefill_j += prefill;
        decode_j += decode;
        if let Some(tokens) = known(columns.tokens_in[at]) {
            uncached_tokens += tokens - known(columns.tokens_cached[at]).unwrap_or(0.0);
            uncached_j += prefill;
        }
        if let Some(tokens) = known(columns.tokens_out[at]) {
            output_tokens += tokens;
            output_j += decode;
        }
    }
    let each = |joules: f64, tokens: f64| (tokens > 0.0).then(|| joules / tokens);
    (count > 0).then(|| PhaseEnergy {
        count,
        prefill_j: prefill_j / count as f64,
        decode_j: decode_j / count as f64,
        prefill_j_per_token: each(uncached_j, uncached_tokens),
        decode_j_per_token: each(output_j, output_tokens),
    })
}

fn totals(table: &RunTable, scope: Scope, prices: EnergyPrices) -> Totals {
    let share = table.columns.scope_columns(scope).share;
    let known = || share.iter().copied().filter_map(known);
    // The sum of no floats is -0.0 in the standard library.
    let energy_j = known().fold(0.0, |sum, joules| sum + joules);
    let kwh = energy_j / 3.6e6;
    Totals {
        metered: known().count(),
        energy_j,
        cost: prices.per_kwh.map(|price| price * kwh),
        co2_g: prices.co2_g_per_kwh.map(|grams| grams * kwh),
    }
}

fn cached_token_fraction(table: &RunTable) -> Option<f64> {
    let columns = &table.columns;
    let pairs = columns.tokens_cached.iter().zip(&columns.tokens_in);
    let known_pairs = pairs.filter_map(|(cached, all)| Some((known(*cached)?, known(*all)?)));
    let (cached, all) = known_pairs.fold((0.0, 0.0), |(cached, all), (more, of)| (cached + more, all + of));
    (all > 0.0).then(|| cached / all)
}

#[cfg(test)]
mod tests {
    use super::super::question;
    use super::super::row::{QueryEnergy, QueryRow, ReplyText};
    use super::super::run_dir::{FORMAT_VERSION, RunDir};
    use super::*;

    #[test]
    fn all_parts_use_the_scope_and_idle_policy() {
        let dir = tempfile::tempdir().unwrap();
        let questions = question::built_in();
        let fingerprint = question::fingerprint(&questions);
        let manifest = Manifest { version: FORMAT_VERSION, fingerprint, ..Manifest::default() };
        let mut run = RunDir::create(dir.path(), &manifest, &questions).unwrap();
        for id in 0..3_u64 {
            let energy = QueryEnergy {
                share_uj: Some(4_000_000 + id),
                idle_uj: Some(1_000_000),
                prefill_uj: Some(500_000),
                decode_uj: Some(3_500_000 + id),
                // Two concurrent queries, so the machine's power is twice the attributed power.
                window_uj: Some(8_000_000 + id * 2),
                at_once: 2,
                span_ns: 2_000_000_000,
                ..QueryEnergy::default()
            };
            let (score, tokens) = (Some(1.0), Some(10 + id));
            let id = id.to_string();
            let row = QueryRow {
                id,
                score,
                tokens_in: tokens,
                tokens_out: tokens,
                energy: Some(energy),
                ..QueryRow::default()
            };
            run.append_row(&row, &ReplyText::default()).unwrap();
        }
        let table = RunTable::read(dir.path()).unwrap();
        let of = |scope, idle| Report::new(&table, &MetricOptions { scope, idle }, EnergyPrices::default());
        let near = |one: f64, other: f64| (one - other).abs() < 1e-2;
        for (idle, joules) in [(IdlePolicy::Included, 4.0), (IdlePolicy::Excluded, 3.0)] {
            let report = of(Scope::Host, idle);
            assert!(near(report.spreads["energy_j"].mean, joules), "{report:?}");
            assert!(near(report.spreads["power_w"].mean, joules), "{report:?}");
            assert!(near(report.spreads["attributed_power_w"].mean, joules / 2.0), "{report:?}");
            assert!(near(report.lines["energy_j by tokens"].mean_y, joules), "{report:?}");
            assert!(near(report.lines["power_w by tokens"].mean_y, joules), "{report:?}");
            let point = report.points.queries[0];
            assert!(near(point.energy_j, joules) && near(point.power_w, joules), "{point:?}");
            assert!(near(report.points.timeline[0].attributed_power_w.unwrap(), joules / 2.0));
            assert_eq!(report.phases.is_some(), idle == IdlePolicy::Included);
            assert!(near(report.sum.energy_j, 12.0), "the sum is the bill's, whatever the figures count");
        }
        assert!(of(Scope::Accelerator, IdlePolicy::Included).phases.is_none());
    }
}
