//! The text of a snapshot, encoded at most once in each format, and the latest one.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::registry::Registry;

use super::metric_families::Families;
use super::snapshot::Snapshot;

/// A format that Prometheus reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextFormat {
    /// Prometheus's own, version 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl TextFormat {
    /// The format for an `Accept` header.
    pub fn for_accept(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") {
            TextFormat::OpenMetrics
        } else {
            TextFormat::Prometheus
        }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            TextFormat::Prometheus => prometheus_text::CONTENT_TYPE,
            TextFormat::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// A snapshot and its texts.
#[derive(Debug, Default)]
pub struct MetricsText {
    snapshot: Arc<Snapshot>,
    prometheus: OnceLock<Bytes>,
    open_metrics: OnceLock<Bytes>,
}

impl MetricsText {
    /// The text in a format.
    pub fn encode(&self, format: TextFormat) -> Bytes {
        let cell = match format {
            TextFormat::Prometheus => &self.prometheus,
            TextFormat::OpenMetrics => &self.open_metrics,
        };
        let text = cell.get_or_init(|| {
            let mut registry = Registry::default();
            registry.register_collector(Box::new(Families(Arc::clone(&self.snapshot))));
            let mut text = String::new();
            let encoded = match format {
                TextFormat::Prometheus => prometheus_text::encode(&mut text, &registry),
                TextFormat::OpenMetrics => text::encode(&mut text, &registry),
            };
            // A string accepts all text, and no label fails.
            if encoded.is_ok() { text.into() } else { Bytes::new() }
        });
        text.clone()
    }
}

/// The latest snapshot, which the server's thread reads and the updater's thread replaces.
#[derive(Debug, Clone, Default)]
pub struct LatestSnapshot(Arc<Mutex<Arc<MetricsText>>>);

impl LatestSnapshot {
    pub fn get(&self) -> Arc<MetricsText> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn set(&self, snapshot: Snapshot) {
        let text = MetricsText { snapshot: Arc::new(snapshot), ..MetricsText::default() };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wattspan_client::account::{Account, Balance};
    use wattspan_client::protocol::DaemonInfo;

    use super::super::machine_totals::DaemonLife;
    use super::super::model_labels::ModelLabels;
    use super::super::snapshot::CurrentValues;
    use super::super::span_group::SpanGroup;
    use super::super::totals_state::TotalsState;

    fn info() -> DaemonInfo {
        serde_json::from_str(
            r#"{"version":"1","boot_id":"b","now_ns":1,"horizon_ns":2,"history_ns":3,"access":"telemetry",
            "absent":[{"source":"nvml","reason":"no library"}],
            "domains":[{"name":"package-0","kind":"package","source":"perf","counted":true,"grade":"measured","liveness":"live",
              "update_interval_ns":1000000,"quantum_uj":61.0},
              {"name":"psys","kind":"psys","source":"perf","counted":false,"grade":"measured","liveness":"stuck"}],
            "samplers":[{"source":"perf","domains":["package-0"],"ticks":10,"late":2,"missed":1,"realtime":false,"pinned":false,
              "lateness_p99_ns":1500}],
            "keeping":{"durable":true,"bytes":5,"waiting":0,"not_kept":0}}"#,
        )
        .unwrap()
    }

    fn snapshot() -> Snapshot {
        let mut totals = TotalsState::default();
        let balance = Balance {
            domain: "package-0".into(),
            measured_uj: 3_500_000,
            attributed_uj: 3_200_000,
            unattributed_uj: 300_000,
            ..Balance::default()
        };
        totals.machine.update(DaemonLife::default(), &info(), &[balance]);
        let account: Account = serde_json::from_str(include_str!("../test_account.json")).unwrap();
        let listed = ModelLabels::Listed(["llama".to_owned()].into());
        totals.add(&account, &listed, &mut SpanGroup::lookup(""));
        let current = CurrentValues { accounts_up: true, ..CurrentValues::new(&info()) };
        Snapshot { totals, current: Some(current), unix_ms: Some(1_763_000_000_500) }
    }

    fn text(snapshot: Snapshot, format: TextFormat) -> String {
        let latest = LatestSnapshot::default();
        latest.set(snapshot);
        String::from_utf8(latest.get().encode(format).to_vec()).unwrap()
    }

    #[test]
    fn the_text_has_the_totals_with_their_labels() {
        let text = text(snapshot(), TextFormat::Prometheus);
        let domain = r#"domain="package-0""#;
        for line in [
            &format!("wattspan_energy_joules_total{{{domain}}} 3.5"),
            &format!(
                r#"wattspan_domain_info{{{domain},kind="package",source="perf",grade="measured",counted="true"}} 1"#
            ),
            &format!("wattspan_attributed_joules_total{{{domain}}} 3.2"),
            &format!("wattspan_unattributed_joules_total{{{domain}}} 0.3"),
            r#"wattspan_host_energy_joules_total{grade="measured"} 3.5"#,
            r#"wattspan_host_energy_joules_total{grade="estimated"} 0"#,
            r#"wattspan_domain_up{domain="psys"} 0"#,
            r#"wattspan_domains{liveness="stuck"} 1"#,
            r#"wattspan_domains{liveness="lost"} 0"#,
            r#"wattspan_source_absent{source="nvml"} 1"#,
            r#"wattspan_spans_total{model="llama",operation="_none",state="settled"} 1"#,
            r#"wattspan_span_energy_joules_total{model="llama",grade="measured"} 3.2"#,
            r#"wattspan_span_energy_error_joules_total{model="llama",grade="measured"} 0.000061"#,
            r#"wattspan_energy_per_span_joules_bucket{model="llama",le="3"} 0"#,
            r#"wattspan_energy_per_span_joules_bucket{model="llama",le="10"} 1"#,
            r#"wattspan_sampler_late_ticks_total{source="perf",sampler="0"} 2"#,
            "wattspan_ledger_durable 1",
            "wattspan_daemon_up 1",
            "wattspan_accounts_up 1",
            "wattspan_snapshot_timestamp_seconds 1763000000.5",
        ] {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let is_line = |(found, at): (&str, &str)| found == series && at.parse::<f64>() == value.parse();
            let found = text.lines().filter_map(|found| found.rsplit_once(' ')).any(is_line);
            assert!(found, "no line {line} in\n{text}");
        }
        // No name of a user, a process or a span.
        assert!(!text.contains("comma") && !text.contains("secret"), "{text}");
        let labels = text.split(['{', ',']).filter_map(|part| part.split_once("=\"")).map(|(label, _)| label);
        let labels: std::collections::BTreeSet<&str> = labels.collect();
        let allowed = "counted direction domain grade kind le liveness model operation reason sampler source state version";
        assert_eq!(labels, allowed.split(' ').collect());
    }

    #[test]
    fn both_formats_have_the_same_series() {
        let names = |format| -> Vec<String> {
            let text = text(snapshot(), format);
            let series = text.lines().filter(|line| !line.starts_with('#'));
            // OpenMetrics writes the bound first, and 1 as 1.0.
            let name = |line: &str| {
                let (series, _) = line.rsplit_once(' ').unwrap();
                let mut parts: Vec<String> =
                    series.split(['{', '}', ',']).map(|part| part.replace(".0\"", "\"")).collect();
                parts.sort();
                parts.join(",")
            };
            let mut names: Vec<String> = series.map(name).collect();
            names.sort();
            names
        };
        assert_eq!(names(TextFormat::Prometheus), names(TextFormat::OpenMetrics));
        let open_metrics = text(snapshot(), TextFormat::OpenMetrics);
        assert!(open_metrics.ends_with("# EOF\n"));
        assert!(open_metrics.contains("# UNIT wattspan_energy_joules joules"), "{open_metrics}");
    }

    #[test]
    fn without_a_reply_only_the_totals_are_shown() {
        let text = text(Snapshot { current: None, ..snapshot() }, TextFormat::Prometheus);
        assert!(text.contains("wattspan_attributed_joules_total{"), "{text}");
        assert!(text.contains("wattspan_daemon_up 0.0\n"), "{text}");
        assert!(!text.contains("wattspan_domain_up") && !text.contains("wattspan_power_watts"), "{text}");
    }

    #[test]
    fn an_accept_header_chooses_the_format() {
        // As Prometheus 2.42 sends it.
        let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(TextFormat::for_accept(prometheus), TextFormat::OpenMetrics);
        for accept in ["", "*/*", "text/plain"] {
            assert_eq!(TextFormat::for_accept(accept), TextFormat::Prometheus, "{accept}");
        }
    }
}
