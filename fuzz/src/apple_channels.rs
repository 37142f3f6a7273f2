//! The channel list of IOReport, its raw elements, and the values of the System Management Controller.

use std::collections::BTreeSet;

use wattspan::sources::apple::ioreport_channel::{
    IoReportChannel, RawElement, Timebase, parse_unit, select_channels,
};
use wattspan::sources::fuzz_entry;

/// Lines are channels (name, tab, unit, and `*` for one that is no number), as in `tests/fixtures/ioreport`. Each selected
/// channel is in the list once, with a known unit, and its domain has a name of its own.
pub fn check(bytes: &[u8]) {
    check_values(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let channels: Vec<IoReportChannel> =
        text.lines().filter(|line| !line.starts_with('#')).map(channel).collect();
    let selection = select_channels(&channels);
    let (mut indices, mut names) = (BTreeSet::new(), BTreeSet::new());
    for selected in &selection.channels {
        let channel = &channels[selected.index];
        assert!(channel.is_simple && indices.insert(selected.index), "{selected:?}");
        assert!(names.insert(&selected.domain_name), "{selected:?}");
        assert_eq!((&selected.channel_name, &selected.unit_label), (&channel.name, &channel.unit_label));
        assert_eq!(parse_unit(&channel.unit_label), Some(selected.unit));
        assert!(selected.domain("ioreport").quantum_uj > 0);
    }
    let channel_names: BTreeSet<&str> =
        selection.channels.iter().map(|selected| selected.channel_name.as_str()).collect();
    assert_eq!(channel_names.len(), selection.channels.len(), "a channel of one name is used once");
}

fn channel(line: &str) -> IoReportChannel {
    let (name, unit) = line.split_once('\t').unwrap_or((line, ""));
    let is_simple = !unit.ends_with('*');
    IoReportChannel { name: name.into(), unit_label: unit.trim_end_matches('*').into(), is_simple }
}

fn check_values(bytes: &[u8]) {
    let element = RawElement::parse(bytes);
    assert_eq!(element.is_some(), bytes.len() >= 32);
    let word = |at: usize| {
        bytes.get(at..at + 4).map_or(1, |word| u32::from_le_bytes(word.try_into().expect("four bytes")))
    };
    if let (Some(element), Some(timebase)) = (element, Timebase::new(word(32), word(36))) {
        let now_ns = u64::from(word(40)) << 20;
        let instant_ns = timebase.instant_ns(element.ticks, now_ns);
        assert!(instant_ns.is_none_or(|instant_ns| instant_ns <= now_ns && element.ticks > 0));
    }
    let (Some(type_code), Some(value)) = (bytes.first_chunk::<4>(), bytes.get(5..37)) else { return };
    let value: &[u8; 32] = value.try_into().expect("32 bytes");
    let milliwatts = fuzz_entry::smc_power_mw(*type_code, u32::from(bytes[4]), value);
    assert!(milliwatts.is_none_or(|milliwatts| milliwatts <= 1_400_000), "{milliwatts:?}");
}
