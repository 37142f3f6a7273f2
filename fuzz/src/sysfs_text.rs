//! Texts of sysfs, procfs and control groups.

use std::collections::BTreeSet;

use wattspan::process_usage::fuzz_entry as process_usage;
use wattspan::sources::energy_unit::EnergyUnit;
use wattspan::sources::fuzz_entry as sources;

/// Numbers are those of the text, lists are sorted and bounded, and an energy unit is the decimal number.
pub fn check(bytes: &[u8]) {
    let expected = std::str::from_utf8(bytes.trim_ascii()).ok().and_then(|text| text.parse().ok());
    assert_eq!(sources::number(bytes), expected);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    check_cpu_list(text);
    check_energy_unit(text);
    let _ = sources::cpu_info(text);
    for name in sources::rail_names(text) {
        assert!(name.len() <= text.len() + 32, "{name}");
    }
    assert!(sources::accuracy_ppm(text).is_none_or(|ppm| ppm <= 500_000));
    let config = text.trim().strip_prefix("event=").map(|value| match value.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => value.parse().ok(),
    });
    assert_eq!(sources::parse_config(text), config.flatten());
    for line in text.lines().take(4) {
        let _ = sources::busy_ticks(line);
    }
    let _ =
        (process_usage::pid_stat(text), process_usage::proc_stat_ns(text), process_usage::cpu_stat_ns(text));
}

/// A slow reader of lists of CPUs: a set.
fn check_cpu_list(text: &str) {
    let Some(cpus) = sources::parse_cpu_list(text) else { return };
    assert!(cpus.is_sorted() && cpus.len() <= 65_536, "{} CPUs", cpus.len());
    let mut expected = BTreeSet::new();
    // Long texts would take the set too long.
    for range in text.trim().split(',').filter(|range| !range.is_empty()).take(8) {
        let mut ends = range.splitn(2, '-').map(|end| end.trim().parse::<usize>().expect("a number"));
        let first = ends.next().expect("a number");
        expected.extend(first..=ends.next().unwrap_or(first));
    }
    let is_subset = expected.iter().all(|cpu| cpus.binary_search(cpu).is_ok());
    assert!(is_subset, "{text}");
    if text.trim().split(',').filter(|range| !range.is_empty()).count() <= 8 {
        assert_eq!(cpus.len(), expected.len(), "{text}");
    }
}

fn check_energy_unit(text: &str) {
    let Some(unit) = EnergyUnit::parse_joules(text) else { return };
    let joules: f64 = text.parse().unwrap_or_else(|_| panic!("{text:?} is no number"));
    const COUNTS: u128 = 1 << 60;
    let expected_uj = joules * 1e6 * COUNTS as f64;
    let shown_uj = unit.to_uj(COUNTS) as f64;
    assert!((shown_uj - expected_uj).abs() <= 1.0 + expected_uj * 1e-12, "{text}: {shown_uj} {expected_uj}");
    assert!(unit.quantum_uj() > 0);
}
