//! The energy and power of domains and host as OTLP metrics (OpenTelemetry's semantic conventions for hardware).
//!
//! Invariant: a cumulative sum never decreases under one start time. A lost point loses no energy.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use wattspan_client::domain::DomainKind;
use wattspan_client::protocol::{DaemonInfo, DomainStatus};

use super::attributes::{flag, joules_of, resource, scope, text};

/// Since when the sums count; stored, so that a restart of the exporter changes no start time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnergyStart {
    pub boot_id: String,
    /// The daemon's start on its clock; with the boot ID the identity of its counters.
    pub started_ns: u64,
    /// The same as wall time, as it was first computed.
    pub start_unix_ns: u64,
    /// The domains in the host's sum.
    pub counted: Vec<String>,
    /// Since when these domains make the sum.
    pub host_start_unix_ns: u64,
    /// Their energy at that time.
    pub host_baseline_uj: u64,
}

impl EnergyStart {
    /// The start for these counters at the wall time `now_unix_ns`. `None`: the daemon does not report its start.
    pub fn update(previous: Option<&Self>, info: &DaemonInfo, now_unix_ns: u64) -> Option<Self> {
        let started_ns = info.started_ns?;
        let counted: Vec<String> = counted(info).map(|domain| domain.name.clone()).collect();
        let same = previous.filter(|known| known.boot_id == info.boot_id && known.started_ns == started_ns);
        Some(match same {
            Some(known) if known.counted == counted => known.clone(),
            // The sum of other domains is another one, which begins at 0 here.
            Some(known) => EnergyStart {
                counted,
                host_start_unix_ns: now_unix_ns,
                host_baseline_uj: host_energy_uj(info).unwrap_or(0),
                ..known.clone()
            },
            None => {
                let start_unix_ns = now_unix_ns.saturating_sub(info.now_ns.saturating_sub(started_ns));
                EnergyStart {
                    boot_id: info.boot_id.clone(),
                    started_ns,
                    start_unix_ns,
                    counted,
                    host_start_unix_ns: start_unix_ns,
                    host_baseline_uj: 0,
                }
            }
        })
    }
}

fn counted(info: &DaemonInfo) -> impl Iterator<Item = &DomainStatus> {
    info.domains.iter().filter(|domain| domain.counted)
}

/// The energy of the counted domains; absent if that of one is unknown.
fn host_energy_uj(info: &DaemonInfo) -> Option<u64> {
    counted(info)
        .map(|domain| domain.energy_uj)
        .sum::<Option<u64>>()
        .filter(|_| counted(info).next().is_some())
}

fn host_power_mw(info: &DaemonInfo) -> Option<u64> {
    counted(info)
        .map(|domain| domain.power_mw)
        .sum::<Option<u64>>()
        .filter(|_| counted(info).next().is_some())
}

/// The body of a request with the metrics at a wall time.
pub fn request_body(info: &DaemonInfo, start: &EnergyStart, now_unix_ns: u64, host: &str) -> Vec<u8> {
    // A wall clock that was set back must not place a point before its start.
    let at = |start_unix_ns: u64| now_unix_ns.max(start_unix_ns).to_string();
    let now = now_unix_ns.to_string();
    let sum_point = |start_unix_ns: u64, uj: u64, attributes: &[Value]| {
        json!({
            "attributes": attributes, "startTimeUnixNano": start_unix_ns.to_string(),
            "timeUnixNano": at(start_unix_ns), "asDouble": joules_of(uj),
        })
    };
    let power_point = |mw: u64, attributes: &[Value]| json!({ "attributes": attributes, "timeUnixNano": now, "asDouble": mw as f64 / 1e3 });
    // The whole host must not stand among its components, whose sums would count it twice.
    let components = || info.domains.iter().filter(|domain| domain.kind != DomainKind::Psys);
    let energy = components().filter_map(|domain| {
        Some(sum_point(start.start_unix_ns, domain.energy_uj?, &domain_attributes(domain)))
    });
    let power =
        components().filter_map(|domain| Some(power_point(domain.power_mw?, &domain_attributes(domain))));
    let of_host = host_attributes(info, host);
    let host_energy = host_energy_uj(info)
        .map(|uj| sum_point(start.host_start_unix_ns, uj.saturating_sub(start.host_baseline_uj), &of_host));
    let host_power = host_power_mw(info).map(|mw| power_point(mw, &of_host));
    let metrics: Vec<Value> = [
        sum("hw.energy", "Energy consumed by the component", energy.collect()),
        gauge("hw.power", "Power of the component over the last update intervals", power.collect()),
        sum(
            "hw.host.energy",
            "Energy consumed by the measured parts of the host",
            Vec::from_iter(host_energy),
        ),
        gauge("hw.host.power", "Power of the measured parts of the host", Vec::from_iter(host_power)),
    ]
    .into_iter()
    .flatten()
    .collect();
    json!({ "resourceMetrics": [{
        "resource": resource(host), "scopeMetrics": [{ "scope": scope(), "metrics": metrics }],
    }]})
    .to_string()
    .into_bytes()
}

fn sum(name: &str, description: &str, points: Vec<Value>) -> Option<Value> {
    // 2: AGGREGATION_TEMPORALITY_CUMULATIVE
    let data = json!({ "aggregationTemporality": 2, "isMonotonic": true, "dataPoints": points });
    (!points.is_empty())
        .then(|| json!({ "name": name, "description": description, "unit": "J", "sum": data }))
}

fn gauge(name: &str, description: &str, points: Vec<Value>) -> Option<Value> {
    let data = json!({ "dataPoints": points });
    (!points.is_empty())
        .then(|| json!({ "name": name, "description": description, "unit": "W", "gauge": data }))
}

fn domain_attributes(domain: &DomainStatus) -> Vec<Value> {
    let mut all = vec![
        text("hw.id", &domain.name),
        text("hw.type", hardware_type(domain.kind)),
        text("hw.name", &domain.name),
    ];
    all.extend(domain.parent.as_ref().map(|parent| text("hw.parent", parent)));
    // Only counted domains add up to the host.
    all.push(flag("wattspan.domain.counted", domain.counted));
    all.push(text("wattspan.energy.grade", domain.grade.as_str()));
    all.extend(domain.is_simulated().then(|| flag("wattspan.energy.simulated", true)));
    all
}

fn host_attributes(info: &DaemonInfo, host: &str) -> Vec<Value> {
    let mut all = vec![text("hw.id", host), text("hw.name", host)];
    let grade = counted(info).map(|domain| domain.grade).max();
    all.extend(grade.map(|grade| text("wattspan.energy.grade", grade.as_str())));
    all.extend(info.simulated.map(|simulated| flag("wattspan.energy.simulated", simulated)));
    all.extend(info.at_least.map(|at_least| flag("wattspan.energy.at_least", at_least)));
    all
}

/// The conventions' well-known value where one applies, else one of its own.
fn hardware_type(kind: DomainKind) -> &'static str {
    match kind {
        DomainKind::Package | DomainKind::Core | DomainKind::Uncore | DomainKind::Cpu => "cpu",
        DomainKind::Dram | DomainKind::GpuMemory => "memory",
        DomainKind::Gpu => "gpu",
        DomainKind::Battery => "battery",
        DomainKind::Psys => "enclosure",
        DomainKind::Npu => "npu",
        DomainKind::Soc => "soc",
        DomainKind::Module => "module",
        DomainKind::Rail => "rail",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(started_ns: u64, now_ns: u64, domains: &Value) -> DaemonInfo {
        serde_json::from_value(json!({
            "version": "1", "boot_id": "boot", "now_ns": now_ns, "started_ns": started_ns, "horizon_ns": 1,
            "history_ns": 1, "domains": domains, "absent": [], "access": "telemetry",
        }))
        .unwrap()
    }

    fn domain(name: &str, kind: &str, counted: bool, energy_uj: Option<u64>) -> Value {
        json!({
            "name": name, "kind": kind, "source": "replay", "counted": counted, "grade": "measured",
            "liveness": "live", "energy_uj": energy_uj, "power_mw": 1500,
        })
    }

    fn metric(body: &[u8], name: &str) -> Option<Value> {
        let body: Value = serde_json::from_slice(body).unwrap();
        let all = body["resourceMetrics"][0]["scopeMetrics"][0]["metrics"].as_array().unwrap().clone();
        all.into_iter().find(|metric| metric["name"] == name)
    }

    const NOW: u64 = 1_763_000_000_000_000_000;

    #[test]
    fn sums_are_cumulative_and_the_platform_is_only_in_those_of_the_host() {
        let mut core = domain("core-0", "core", false, Some(1_500_000));
        core["parent"] = "package-0".into();
        let all = json!([
            domain("psys", "psys", true, Some(9_000_000)),
            domain("package-0", "package", false, Some(2_000_001)),
            core,
        ]);
        let info = info(1000, 6000, &all);
        let start = EnergyStart::update(None, &info, NOW).unwrap();
        let body = request_body(&info, &start, NOW, "node-7");
        let energy = metric(&body, "hw.energy").unwrap();
        assert_eq!((&energy["unit"], &energy["sum"]["aggregationTemporality"]), (&json!("J"), &json!(2)));
        let points = energy["sum"]["dataPoints"].as_array().unwrap();
        assert_eq!(points.len(), 2);
        assert_eq!(points[0]["asDouble"], 2.000001);
        assert_eq!(points[0]["startTimeUnixNano"], (NOW - 5000).to_string());
        assert_eq!(points[1]["attributes"][3], text("hw.parent", "package-0"));
        assert_eq!(metric(&body, "hw.host.energy").unwrap()["sum"]["dataPoints"][0]["asDouble"], 9.0);
        assert_eq!(metric(&body, "hw.host.power").unwrap()["gauge"]["dataPoints"][0]["asDouble"], 1.5);
    }

    #[test]
    fn an_unknown_energy_is_absent_and_so_is_the_sum_with_it() {
        let all = json!([domain("package-0", "package", true, Some(5)), domain("gpu-0", "gpu", true, None)]);
        let info = info(1000, 6000, &all);
        let start = EnergyStart::update(None, &info, NOW).unwrap();
        let body = request_body(&info, &start, NOW, "h");
        assert_eq!(metric(&body, "hw.energy").unwrap()["sum"]["dataPoints"].as_array().unwrap().len(), 1);
        assert_eq!(metric(&body, "hw.host.energy"), None);
    }

    #[test]
    fn the_start_is_kept_until_the_daemon_or_the_counted_domains_change() {
        let two = |counted, uj| {
            json!([domain("a", "package", true, Some(10)), domain("b", "dram", counted, Some(uj))])
        };
        let first = EnergyStart::update(None, &info(1000, 6000, &two(true, 5)), NOW).unwrap();
        let later = EnergyStart::update(Some(&first), &info(1000, 9000, &two(true, 7)), NOW + 99).unwrap();
        assert_eq!(later, first, "although the clocks differ by some nanoseconds");
        let restarted =
            EnergyStart::update(Some(&first), &info(8000, 9000, &two(true, 0)), NOW + 99).unwrap();
        assert_eq!(restarted.start_unix_ns, NOW + 99 - 1000);
        // The host's sum would fall from 17 to 10: it begins again at 0.
        let fewer = info(1000, 9000, &two(false, 7));
        let other = EnergyStart::update(Some(&first), &fewer, NOW + 99).unwrap();
        assert_eq!((other.start_unix_ns, other.host_start_unix_ns), (first.start_unix_ns, NOW + 99));
        let point = metric(&request_body(&fewer, &other, NOW + 99, "h"), "hw.host.energy").unwrap();
        assert_eq!(point["sum"]["dataPoints"][0]["asDouble"], 0.0);
    }
}
