//! The metrics: names, units and labels by the rules of OpenMetrics. Each value of a label is from a bounded set.

use std::collections::BTreeMap;
use std::fmt::Error;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use wattspan_client::domain::{Grade, Liveness};

use super::machine_totals::SamplerTotals;
use super::model_histogram::{DURATION_US, ENERGY_UJ, HistogramScale, ModelHistogram, TOKEN_NJ};
use super::model_totals::ModelTotals;
use super::snapshot::{CurrentValues, Snapshot};

/// The words of `GapReason` in the contract.
const GAP_REASONS: [&str; 3] = ["damaged", "deleted", "lost"];

const GRADES: [Grade; 4] = [Grade::Measured, Grade::Modelled, Grade::Integrated, Grade::Estimated];

/// The metrics of a snapshot.
#[derive(Debug)]
pub struct Families(pub Arc<Snapshot>);

type Label<'a> = (&'static str, &'a str);

/// A value with its labels.
type Row<'a> = (Vec<Label<'a>>, f64);

/// The name without unit and suffix, and the help text.
struct Family(&'static str, Option<Unit>, &'static str);

impl Family {
    fn joules(name: &'static str, help: &'static str) -> Self {
        Family(name, Some(Unit::Joules), help)
    }

    fn watts(name: &'static str, help: &'static str) -> Self {
        Family(name, Some(Unit::Other("watts".into())), help)
    }

    fn seconds(name: &'static str, help: &'static str) -> Self {
        Family(name, Some(Unit::Seconds), help)
    }

    fn plain(name: &'static str, help: &'static str) -> Self {
        Family(name, None, help)
    }
}

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), Error> {
        let mut out = FamilyEncoder { encoder: &mut encoder };
        let snapshot = &*self.0;
        encode_domains(&mut out, snapshot)?;
        encode_models(&mut out, snapshot)?;
        encode_histograms(&mut out, snapshot)?;
        encode_samplers(&mut out, snapshot)?;
        encode_exporter(&mut out, snapshot)?;
        match &snapshot.current {
            Some(current) => encode_current(&mut out, current),
            None => Ok(()),
        }
    }
}

struct FamilyEncoder<'e, 'd> {
    encoder: &'e mut DescriptorEncoder<'d>,
}

impl FamilyEncoder<'_, '_> {
    fn counter<'a>(&mut self, family: Family, rows: impl IntoIterator<Item = Row<'a>>) -> Result<(), Error> {
        let encode = |encoder: &mut MetricEncoder, value: f64| {
            encoder.encode_counter::<NoLabelSet, f64, f64>(&value, None)
        };
        self.family(family, MetricType::Counter, rows, encode)
    }

    fn gauge<'a>(&mut self, family: Family, rows: impl IntoIterator<Item = Row<'a>>) -> Result<(), Error> {
        self.family(family, ConstGauge::new(0.0).metric_type(), rows, |encoder, value| {
            encoder.encode_gauge(&value)
        })
    }

    fn histogram<'a>(
        &mut self,
        family: Family,
        scale: HistogramScale,
        rows: impl IntoIterator<Item = (Vec<Label<'a>>, &'a ModelHistogram)>,
    ) -> Result<(), Error> {
        self.family(family, MetricType::Histogram, rows, |encoder, value| {
            encoder.encode_histogram::<NoLabelSet>(
                value.sum(scale),
                value.count(),
                &value.buckets(scale),
                None,
            )
        })
    }

    /// A family without a value is left out.
    fn family<'a, T>(
        &mut self,
        Family(name, unit, help): Family,
        metric_type: MetricType,
        rows: impl IntoIterator<Item = (Vec<Label<'a>>, T)>,
        encode: impl Fn(&mut MetricEncoder, T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut rows = rows.into_iter().peekable();
        if rows.peek().is_none() {
            return Ok(());
        }
        let mut family = self.encoder.encode_descriptor(name, help, unit.as_ref(), metric_type)?;
        for (labels, value) in rows {
            if labels.is_empty() {
                encode(&mut family, value)?;
            } else {
                encode(&mut family.encode_family(&labels)?, value)?;
            }
        }
        Ok(())
    }
}

fn joules(uj: u64) -> f64 {
    uj as f64 / 1e6
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

fn flag_label(value: bool) -> &'static str {
    if value { "true" } else { "false" }
}

/// Energy of the domains and of the host.
fn encode_domains(out: &mut FamilyEncoder, snapshot: &Snapshot) -> Result<(), Error> {
    let domains = &snapshot.totals.machine.domains;
    let labels = |name| -> Vec<Label> { vec![("domain", name)] };
    let energy = domains.iter().map(|(name, totals)| (labels(name), joules(totals.energy_uj())));
    out.counter(
        Family::joules(
            "wattspan_energy",
            "Energy of the domain. Domains overlap; counted ones add up to the host",
        ),
        energy,
    )?;
    // What can change is no label of a counter: the series with the new label would begin with all energy.
    let infos = domains.iter().map(|(name, totals)| -> Row {
        let more = [
            ("kind", &*totals.kind),
            ("source", &*totals.source),
            ("grade", &*totals.grade),
            ("counted", flag_label(totals.counted)),
        ];
        (labels(name).into_iter().chain(more).collect(), 1.0)
    });
    let help = "What the domain is; counted: its energy is part of the host's now";
    out.gauge(Family::plain("wattspan_domain_info", help), infos)?;
    let attributed = domains.iter().map(|(name, totals)| (labels(name), joules(totals.attributed_uj)));
    out.counter(
        Family::joules(
            "wattspan_attributed",
            "Energy of the domain that is attributed to spans, open ones included",
        ),
        attributed,
    )?;
    let unattributed = domains.iter().map(|(name, totals)| (labels(name), joules(totals.unattributed_uj)));
    out.counter(
        Family::joules("wattspan_unattributed", "Energy of the domain while no span was open"),
        unattributed,
    )?;
    let by_grade = snapshot.totals.machine.host_grades_uj();
    // Each grade from the beginning: the increase of a series that appears later lacks its first value.
    let grades = GRADES.iter().filter(|_| !by_grade.is_empty()).map(|grade| grade.as_str());
    let host = grades.map(|grade| -> Row {
        let uj = by_grade.get(grade).copied().unwrap_or(0);
        (vec![("grade", grade)], joules(uj))
    });
    out.counter(
        Family::joules("wattspan_host_energy", "Energy of the machine: the sum over the counted domains"),
        host,
    )
}

/// Totals of spans by model.
fn encode_models(out: &mut FamilyEncoder, snapshot: &Snapshot) -> Result<(), Error> {
    let models = &snapshot.totals.models;
    let mut spans: Vec<Row> = Vec::new();
    let (mut energy, mut error, mut idle) = (Vec::new(), Vec::new(), Vec::new());
    let mut tokens: Vec<Row> = Vec::new();
    for (model, totals) in models {
        for (state, operations) in &totals.spans {
            spans.extend(operations.iter().map(|(operation, count)| -> Row {
                (vec![("model", model), ("operation", operation), ("state", state)], *count as f64)
            }));
        }
        for (grade, of_grade) in &totals.energy {
            let labels: Vec<Label> = vec![("model", model), ("grade", grade)];
            energy.push((labels.clone(), joules(of_grade.share_uj)));
            error.push((labels.clone(), joules(of_grade.error_uj)));
            idle.push((labels, joules(of_grade.idle_uj)));
        }
        for (direction, count) in [("input", totals.input_tokens), ("output", totals.output_tokens)] {
            tokens.push((vec![("model", model), ("direction", direction)], count as f64));
        }
    }
    out.counter(Family::plain("wattspan_spans", "Final accounts of spans"), spans)?;
    out.counter(
        Family::joules("wattspan_span_energy", "Energy of the spans: the sum of their shares"),
        energy,
    )?;
    let help = "Bound on the error of wattspan_span_energy_joules_total: the true sum is within it";
    out.counter(Family::joules("wattspan_span_energy_error", help), error)?;
    let help = "Part of the energy of the spans that the idle machine would have used";
    out.counter(Family::joules("wattspan_span_energy_idle", help), idle)?;
    out.counter(Family::plain("wattspan_span_tokens", "Tokens of the spans whose energy is known"), tokens)?;
    encode_exceptions(out, snapshot)
}

/// Spans that failed, and those of which something is unknown.
fn encode_exceptions(out: &mut FamilyEncoder, snapshot: &Snapshot) -> Result<(), Error> {
    let count = |value: fn(&ModelTotals) -> f64| {
        let all = snapshot.totals.models.iter();
        all.map(move |(model, totals)| -> Row { (vec![("model", model)], value(totals)) })
    };
    let help = "Spans of requests that failed, or whose client or daemon ended";
    out.counter(Family::plain("wattspan_failed_spans", help), count(|totals| totals.failed as f64))?;
    let help = "Part of the energy of the spans that failed ones used";
    out.counter(
        Family::joules("wattspan_failed_span_energy", help),
        count(|totals| joules(totals.failed_uj)),
    )?;
    let help = "Spans whose energy is unknown";
    out.counter(
        Family::plain("wattspan_span_without_energy", help),
        count(|totals| totals.without_energy as f64),
    )?;
    let help = "Spans with energy, but without a bound on its error, which wattspan_span_energy_error_joules_total lacks";
    out.counter(
        Family::plain("wattspan_span_without_error", help),
        count(|totals| totals.without_error as f64),
    )
}

fn encode_histograms(out: &mut FamilyEncoder, snapshot: &Snapshot) -> Result<(), Error> {
    let rows = |of: fn(&ModelTotals) -> &ModelHistogram| {
        let all = snapshot.totals.models.iter();
        let rows =
            all.map(move |(model, totals)| -> (Vec<Label>, _) { (vec![("model", model)], of(totals)) });
        rows.filter(|(_, histogram)| histogram.count() > 0)
    };
    // Not wattspan_span_energy: OpenMetrics allows a name for one type only, and that is the counter's.
    let energy = Family::joules("wattspan_energy_per_span", "Energy of each span");
    out.histogram(energy, ENERGY_UJ, rows(|totals| &totals.span_energy))?;
    let help = "Energy of each span, divided by its output tokens";
    let per_token = Family::joules("wattspan_energy_per_output_token", help);
    out.histogram(per_token, TOKEN_NJ, rows(|totals| &totals.token_energy))?;
    let duration =
        Family::seconds("wattspan_span_duration", "Time from the opening of each span to its closing");
    out.histogram(duration, DURATION_US, rows(|totals| &totals.duration))
}

/// The reads of the samplers.
fn encode_samplers(out: &mut FamilyEncoder, snapshot: &Snapshot) -> Result<(), Error> {
    let samplers = &snapshot.totals.machine.samplers;
    let most = samplers.values().map(Vec::len).max().unwrap_or(0);
    let places: Vec<String> = (0..most).map(|place| place.to_string()).collect();
    let rows = |value: fn(&SamplerTotals) -> u64| -> Vec<Row> {
        let mut rows = Vec::new();
        for (source, of_source) in samplers {
            rows.extend(of_source.iter().zip(&places).map(|(totals, place)| -> Row {
                (vec![("source", source), ("sampler", place)], value(totals) as f64)
            }));
        }
        rows
    };
    out.counter(
        Family::plain("wattspan_sampler_ticks", "Scheduled reads of the sampler"),
        rows(|totals| totals.ticks.total()),
    )?;
    let help = "Scheduled reads that began late";
    out.counter(Family::plain("wattspan_sampler_late_ticks", help), rows(|totals| totals.late.total()))?;
    let help = "Scheduled reads that were not made";
    out.counter(Family::plain("wattspan_sampler_missed_ticks", help), rows(|totals| totals.missed.total()))
}

/// What the exporter knows without the daemon.
fn encode_exporter(out: &mut FamilyEncoder, snapshot: &Snapshot) -> Result<(), Error> {
    let totals = &snapshot.totals;
    let by_reason = |counts: &BTreeMap<String, u64>| -> Vec<Row<'static>> {
        let count = |reason: &str| counts.get(reason).copied().unwrap_or(0) as f64;
        GAP_REASONS.iter().map(|reason| (vec![("reason", *reason)], count(reason))).collect()
    };
    let help = "Accounts that the exporter did not see, because they are no longer stored";
    out.counter(Family::plain("wattspan_exporter_lost_accounts", help), by_reason(&totals.lost))?;
    let help = "Runs of such accounts; their length is unknown without telemetry access";
    out.counter(Family::plain("wattspan_exporter_gaps", help), by_reason(&totals.gaps))?;
    let help = "How often the daemon had another database of accounts";
    let databases = [(Vec::new(), totals.new_databases as f64)];
    out.counter(Family::plain("wattspan_exporter_new_databases", help), databases)?;
    let help = "Final accounts that the daemon dropped, because they could not be stored";
    let not_kept = [(Vec::new(), totals.machine.not_kept.total() as f64)];
    out.counter(Family::plain("wattspan_ledger_not_kept_accounts", help), not_kept)?;
    let all_users = totals.all_users.map(|all| (Vec::new(), flag(all)));
    let help = "1: the spans are those of all users; 0: those of the exporter's user";
    out.gauge(Family::plain("wattspan_exporter_all_users", help), all_users)?;
    let version = [(vec![("version", env!("CARGO_PKG_VERSION"))], 1.0)];
    out.gauge(Family::plain("wattspan_build_info", "The version of the exporter"), version)?;
    let instant = snapshot.unix_ms.map(|ms| (Vec::new(), ms as f64 / 1e3));
    let help = "When the values last changed: an instant of the exporter's grid";
    out.gauge(Family::seconds("wattspan_snapshot_timestamp", help), instant)?;
    let up = snapshot.unix_ms.map(|_| (Vec::new(), flag(snapshot.current.is_some())));
    out.gauge(Family::plain("wattspan_daemon_up", "Whether the daemon replied at that instant"), up)
}

/// What the daemon replied at this instant.
fn encode_current(out: &mut FamilyEncoder, current: &CurrentValues) -> Result<(), Error> {
    let power = current.power_w.iter().map(|(name, watts)| -> Row { (vec![("domain", name)], *watts) });
    let help = "Mean power of the domain between the last two instants of the exporter's grid";
    out.gauge(Family::watts("wattspan_power", help), power)?;
    let help = "Mean power of the machine between the last two instants of the exporter's grid";
    out.gauge(
        Family::watts("wattspan_host_power", help),
        current.host_power_w.map(|watts| (Vec::new(), watts)),
    )?;
    encode_domain_health(out, current)?;
    let help =
        "1: the machine's energy is a lower bound, because a domain may be a second name of a counted one";
    out.gauge(Family::plain("wattspan_host_is_lower_bound", help), [(Vec::new(), flag(current.at_least))])?;
    let help = "1: a domain is replayed from a file and not read from hardware";
    out.gauge(Family::plain("wattspan_simulated", help), [(Vec::new(), flag(current.simulated))])?;
    let version = [(vec![("version", &*current.version)], 1.0)];
    out.gauge(Family::plain("wattspan_daemon_info", "The version of the daemon"), version)?;
    let help = "Whether the exporter could read the accounts of spans";
    out.gauge(Family::plain("wattspan_accounts_up", help), [(Vec::new(), flag(current.accounts_up))])?;
    encode_lateness(out, current)?;
    let Some(store) = &current.store else { return Ok(()) };
    let help = "Whether final accounts are on disk before they are returned";
    out.gauge(Family::plain("wattspan_ledger_durable", help), [(Vec::new(), flag(store.durable))])?;
    let bytes = Family("wattspan_ledger", Some(Unit::Bytes), "Size of the stored accounts");
    out.gauge(bytes, [(Vec::new(), store.bytes as f64)])?;
    let waiting = [(Vec::new(), store.waiting as f64)];
    out.gauge(
        Family::plain("wattspan_ledger_waiting_accounts", "Final accounts that are not yet on disk"),
        waiting,
    )
}

fn encode_lateness(out: &mut FamilyEncoder, current: &CurrentValues) -> Result<(), Error> {
    let places: Vec<String> = current.lateness.iter().map(|(_, place, ..)| place.to_string()).collect();
    let rows = |of: fn(&[Option<u64>; 2]) -> Option<u64>| -> Vec<Row> {
        let all = current.lateness.iter().zip(&places);
        let mut rows = Vec::new();
        for ((source, _, lateness), place) in all {
            rows.extend(
                of(lateness).map(|ns| -> Row { (vec![("source", source), ("sampler", place)], seconds(ns)) }),
            );
        }
        rows
    };
    // Two gauges, because the label `quantile` is for summaries, which have a sum.
    let help = "Median delay of scheduled reads since the daemon started";
    out.gauge(Family::seconds("wattspan_sampler_lateness_p50", help), rows(|lateness| lateness[0]))?;
    let help = "99th percentile of the delay of scheduled reads since the daemon started";
    out.gauge(Family::seconds("wattspan_sampler_lateness_p99", help), rows(|lateness| lateness[1]))
}

fn encode_domain_health(out: &mut FamilyEncoder, current: &CurrentValues) -> Result<(), Error> {
    let domains = &current.domains;
    let labels = |name| -> Vec<Label> { vec![("domain", name)] };
    let up = domains.iter().map(|(name, liveness, ..)| (labels(name), flag(*liveness == Liveness::Live)));
    out.gauge(Family::plain("wattspan_domain_up", "Whether the domain's counter advances"), up)?;
    let by_liveness = [
        ("live", Liveness::Live),
        ("stuck", Liveness::Stuck),
        ("lost", Liveness::Lost),
        ("starting", Liveness::Starting),
    ];
    let count = |of: Liveness| domains.iter().filter(|(_, liveness, ..)| *liveness == of).count();
    let counts =
        by_liveness.map(|(word, liveness)| -> Row { (vec![("liveness", word)], count(liveness) as f64) });
    out.gauge(Family::plain("wattspan_domains", "Domains by the state of their counters"), counts)?;
    let interval = domains.iter().filter_map(|(name, _, ns, _)| Some((labels(name), seconds((*ns)?))));
    out.gauge(
        Family::seconds("wattspan_domain_update_interval", "Time between two updates of the counter"),
        interval,
    )?;
    let quantum = domains.iter().filter_map(|(name, .., uj)| Some((labels(name), (*uj)? / 1e6)));
    out.gauge(Family::joules("wattspan_domain_quantum", "Smallest step of the counter"), quantum)?;
    let absent = current.absent_sources.iter().map(|source| -> Row { (vec![("source", source)], 1.0) });
    out.gauge(
        Family::plain("wattspan_source_absent", "Sources that this machine or its configuration lacks"),
        absent,
    )
}
