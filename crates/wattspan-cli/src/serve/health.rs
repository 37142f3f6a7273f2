//! The health of the meter: whether it is reached, stuck and lost domains, late reads, and the store.

use serde::Serialize;
use wattspan_client::domain::Liveness;

use super::request_log::shown_name;
use crate::quantity::format_duration;
use crate::top::meter_feed::MeterSnapshot;

/// How much attention a line needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HealthLevel {
    Ok,
    Warning,
    Alarm,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HealthLine {
    pub level: HealthLevel,
    pub name: String,
    pub text: String,
}

/// Characters of a reason.
const MAX_REASON_CHARS: usize = 300;

fn line(level: HealthLevel, name: &str, text: String) -> HealthLine {
    HealthLine { level, name: shown_name(name), text }
}

fn shown_reason(reason: &str) -> String {
    crate::terminal::printable(&reason.chars().take(MAX_REASON_CHARS).collect::<String>())
}

/// All lines. `unreachable`: why the last poll failed.
pub fn health_lines(snapshot: &MeterSnapshot, unreachable: Option<&str>) -> Vec<HealthLine> {
    let mut lines = vec![match unreachable {
        None => line(HealthLevel::Ok, "meter", "reached".into()),
        Some(reason) => line(HealthLevel::Alarm, "meter", shown_reason(reason)),
    }];
    lines.extend(domain_lines(snapshot));
    lines.extend(snapshot.samplers.iter().map(|sampler| {
        let p99 =
            sampler.lateness_p99_ns.map_or_else(String::new, |ns| format!(", p99 {}", format_duration(ns)));
        let text = format!("{} reads, {} late{p99}, {} missed", sampler.ticks, sampler.late, sampler.missed);
        // A late read widens error bounds and loses nothing; one in a hundred is usual on a busy machine.
        let is_late = sampler.late > sampler.ticks / 100 || sampler.missed > sampler.ticks / 100;
        let level = if is_late { HealthLevel::Warning } else { HealthLevel::Ok };
        line(level, &format!("sampler {}", sampler.source), text)
    }));
    lines.push(store_line(snapshot));
    lines
}

fn domain_lines(snapshot: &MeterSnapshot) -> Vec<HealthLine> {
    let mut lines = Vec::new();
    for domain in snapshot.domains.iter().filter(|domain| domain.liveness != Liveness::Live) {
        let (level, state) = match domain.liveness {
            Liveness::Lost => (HealthLevel::Alarm, "lost"),
            Liveness::Stuck => (HealthLevel::Warning, "stuck"),
            Liveness::Starting | Liveness::Live => (HealthLevel::Warning, "starting"),
        };
        let reason =
            domain.reason.as_deref().map_or_else(String::new, |reason| format!(": {}", shown_reason(reason)));
        lines.push(line(level, &domain.name, format!("{state}{reason}")));
    }
    if lines.is_empty() {
        let text = format!("all {} are live", snapshot.domains.len());
        lines.push(line(HealthLevel::Ok, "domains", text));
    }
    if snapshot.at_least == Some(true) {
        let text = "the total may be too low: a domain is not counted, because it can be a duplicate";
        lines.push(line(HealthLevel::Warning, "total", text.into()));
    }
    lines
}

fn store_line(snapshot: &MeterSnapshot) -> HealthLine {
    let Some(store) = &snapshot.store else {
        return line(HealthLevel::Ok, "durability", "no store: accounts end with the meter".into());
    };
    let reason = store.reason.as_deref().map(shown_reason);
    let waiting = if store.waiting > 0 { format!(", {} waiting", store.waiting) } else { String::new() };
    if store.not_kept > 0 {
        let text =
            format!("{} accounts were not kept{waiting}; {}", store.not_kept, reason.unwrap_or_default());
        return line(HealthLevel::Alarm, "durability", text);
    }
    match store.durable {
        true => {
            let text = reason.unwrap_or_else(|| "accounts are on disk before they are returned".into());
            line(HealthLevel::Ok, "durability", text + &waiting)
        }
        false => {
            let text = format!("accounts are not on disk: {}{waiting}", reason.unwrap_or_default());
            line(HealthLevel::Alarm, "durability", text)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::top::test_machine::snapshot;

    fn levels(snapshot: &MeterSnapshot, unreachable: Option<&str>) -> Vec<(String, HealthLevel)> {
        health_lines(snapshot, unreachable).into_iter().map(|line| (line.name, line.level)).collect()
    }

    #[test]
    fn a_healthy_meter_has_no_warning() {
        let mut healthy = snapshot(&[("package-0", 10, 5)]);
        healthy.store = serde_json::from_value(json!({
            "durable": true, "bytes": 1, "waiting": 0, "not_kept": 0,
        }))
        .unwrap();
        assert!(levels(&healthy, None).iter().all(|(_, level)| *level == HealthLevel::Ok));
        assert_eq!(levels(&healthy, Some("gone"))[0], ("meter".into(), HealthLevel::Alarm));
    }

    #[test]
    fn what_is_stuck_lost_late_or_not_durable_is_named_with_its_reason() {
        let mut ill = snapshot(&[("package-0", 10, 5), ("dram-0", 10, 5)]);
        ill.domains[0].liveness = Liveness::Stuck;
        ill.domains[0].reason = Some("does not move\u{1b}[2J".into());
        ill.domains[1].liveness = Liveness::Lost;
        ill.samplers = serde_json::from_value(json!([{
            "source": "perf", "domains": [], "ticks": 100, "late": 9, "missed": 0, "lateness_p99_ns": 300_000,
            "realtime": false, "pinned": false,
        }]))
        .unwrap();
        ill.store = serde_json::from_value(json!({
            "durable": false, "reason": "the disk is full", "bytes": 1, "waiting": 7, "not_kept": 0,
        }))
        .unwrap();
        let lines = health_lines(&ill, None);
        let texts: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
        let expected = [
            "reached",
            "stuck: does not move\\u{1b}[2J",
            "lost",
            "100 reads, 9 late, p99 300.0 µs, 0 missed",
            "accounts are not on disk: the disk is full, 7 waiting",
        ];
        assert_eq!(texts, expected);
        let levels: Vec<HealthLevel> = lines.iter().map(|line| line.level).collect();
        use HealthLevel::{Alarm, Ok, Warning};
        assert_eq!(levels, [Ok, Warning, Alarm, Warning, Alarm]);
        ill.store.as_mut().unwrap().not_kept = 3;
        let last = health_lines(&ill, None).pop().unwrap();
        assert_eq!(
            (last.level, last.text.as_str()),
            (Alarm, "3 accounts were not kept, 7 waiting; the disk is full")
        );
    }
}
