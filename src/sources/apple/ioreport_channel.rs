//! The choice of the channels of IOReport's "Energy Model", their units, and the format of their raw elements.
//!
//! The group has hundreds of channels, most of them parts of others: the sum of all channels with "CPU" in their name was
//! 107 W at a true power of 36 W. Only the total of each part of the chip is chosen, by its exact name without the prefix of a
//! die. Each channel has its own unit label; a channel with an unknown label is reported and not used.
//!
//! The raw element is xnu's `IOReportElement` (`iokit/IOKit/IOReportTypes.h`): provider, channel, type and time stamp, eight
//! bytes each, then four values; little endian on every Mac. The stamp is `mach_absolute_time` at the publication of the
//! value. Apple does not document its clock; independent programs found it. An implausible stamp is ignored.

use std::fmt::Write as _;

use crate::domain::{Domain, DomainKind, Grade};
use crate::sources::counter::plausible_ceiling_mw;
use crate::sources::energy_unit::EnergyUnit;

/// The description of a channel in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoReportChannel {
    /// Its name in IOReport.
    pub name: String,
    /// Its unit label in IOReport.
    pub unit_label: String,
    /// Whether it holds one number (`kIOReportFormatSimple`).
    pub is_simple: bool,
}

/// A channel that becomes a domain.
#[derive(Debug, Clone, PartialEq)]
pub struct SelectedChannel {
    /// Its index in the list.
    pub index: usize,
    /// Its name in the list.
    pub channel_name: String,
    /// Its unit label in the list.
    pub unit_label: String,
    /// The energy of one count.
    pub unit: EnergyUnit,
    /// As in GetInfo.
    pub domain_name: String,
    /// The part of the chip that the channel measures.
    pub kind: DomainKind,
}

/// The result of a choice.
#[derive(Debug, Default, PartialEq)]
pub struct ChannelSelection {
    /// The meters, in the order of `PARTS`.
    pub channels: Vec<SelectedChannel>,
    /// Notes about missing parts.
    pub notes: Vec<String>,
}

/// A part of the chip with a meter.
struct ChipPart {
    name: &'static str,
    kind: DomainKind,
    /// Patterns of its channels' names, best first. All channels of the first matching pattern are used; the other patterns
    /// show the same energy again.
    patterns: &'static [NamePattern],
}

/// A pattern of channel names.
#[derive(Clone, Copy)]
enum NamePattern {
    Exact(&'static str),
    /// This prefix and a number: `DRAM0`.
    Numbered(&'static str),
    /// This prefix and two numbers: `ANE0_1`.
    NumberedTwice(&'static str),
}

/// The parts of the chip, in their order of display. The GPU's memory is a rail: it is not documented whether the GPU's
/// energy contains it, so it is shown and never added.
const PARTS: [ChipPart; 5] = [
    ChipPart { name: "cpu", kind: DomainKind::Cpu, patterns: &[NamePattern::Exact("CPU Energy")] },
    ChipPart {
        name: "gpu",
        kind: DomainKind::Gpu,
        patterns: &[
            NamePattern::Exact("GPU Energy"),
            NamePattern::Exact("GPU"),
            NamePattern::Numbered("GPU"),
            NamePattern::NumberedTwice("GPU"),
        ],
    },
    ChipPart {
        name: "ane",
        kind: DomainKind::Npu,
        patterns: &[
            NamePattern::Exact("ANE"),
            NamePattern::Numbered("ANE"),
            NamePattern::NumberedTwice("ANE"),
        ],
    },
    ChipPart {
        name: "dram",
        kind: DomainKind::Dram,
        patterns: &[
            NamePattern::Exact("DRAM"),
            NamePattern::Numbered("DRAM"),
            NamePattern::NumberedTwice("DRAM"),
        ],
    },
    ChipPart {
        name: "gpu-sram",
        kind: DomainKind::Rail,
        patterns: &[
            NamePattern::Exact("GPU SRAM"),
            NamePattern::Numbered("GPU SRAM"),
            NamePattern::NumberedTwice("GPU SRAM"),
        ],
    },
];

impl NamePattern {
    fn matches(self, name: &str) -> bool {
        let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match self {
            NamePattern::Exact(whole) => name == whole,
            NamePattern::Numbered(stem) => name.strip_prefix(stem).is_some_and(number),
            NamePattern::NumberedTwice(stem) => name
                .strip_prefix(stem)
                .and_then(|rest| rest.split_once('_'))
                .is_some_and(|(first, second)| number(first) && number(second)),
        }
    }
}

/// Splits the die's prefix from a name: chips with several dies prefix `DIE_1_`, and macOS 27 writes `DIE1 ` in some groups.
fn strip_die_prefix(name: &str) -> (Option<u32>, &str) {
    let numbered = |rest: &str, end: char| -> Option<(u32, usize)> {
        let (number, _) = rest.split_once(end)?;
        Some((number.parse().ok()?, number.len() + 1))
    };
    let prefixed = [("DIE_", '_'), ("DIE", ' ')].into_iter().find_map(|(prefix, end)| {
        let rest = name.strip_prefix(prefix)?;
        let (die, length) = numbered(rest, end)?;
        Some((Some(die), &rest[length..]))
    });
    prefixed.unwrap_or((None, name))
}

/// The energy of one count of a channel with this label. Surrounding blanks are ignored.
pub fn parse_unit(label: &str) -> Option<EnergyUnit> {
    match label.trim() {
        "nJ" => EnergyUnit::from_fraction(1, 1_000),
        "uJ" | "µJ" | "μJ" => Some(EnergyUnit::MICROJOULE),
        "mJ" => Some(EnergyUnit::MILLIJOULE),
        "cJ" => EnergyUnit::from_fraction(10_000, 1),
        "dJ" => EnergyUnit::from_fraction(100_000, 1),
        "J" => EnergyUnit::from_fraction(1_000_000, 1),
        "kJ" => EnergyUnit::from_fraction(1_000_000_000, 1),
        _ => None,
    }
}

/// Chooses the meters in a list.
pub fn select_channels(channels: &[IoReportChannel]) -> ChannelSelection {
    let mut selection = ChannelSelection::default();
    for part in &PARTS {
        let found = channels_of_part(part, channels);
        if found.is_empty() && part.kind != DomainKind::Rail {
            selection.notes.push(format!("it has no channel for {}", part.name));
        }
        let several = found.len() > 1;
        for (nth, index) in found.into_iter().enumerate() {
            let IoReportChannel { name, unit_label: unit, is_simple: simple } = &channels[index];
            let known = parse_unit(unit).filter(|_| *simple);
            let Some(known) = known else {
                selection.notes.push(format!(
                    "its channel {name:?} {}, so {} is not metered; please report this",
                    if *simple {
                        format!("counts in {unit:?}, an unknown unit")
                    } else {
                        "is not a single number".into()
                    },
                    part.name
                ));
                continue;
            };
            selection.channels.push(SelectedChannel {
                index,
                channel_name: name.clone(),
                unit_label: unit.clone(),
                unit: known,
                domain_name: if several { format!("{}-{nth}", part.name) } else { part.name.into() },
                kind: part.kind,
            });
        }
    }
    if selection.notes.iter().any(|note| note.starts_with("it has no channel")) {
        selection.notes.push(describe_channels(channels));
    }
    selection
}

/// The channels of a part. A channel without a die contains those of the dies.
fn channels_of_part(part: &ChipPart, channels: &[IoReportChannel]) -> Vec<usize> {
    for pattern in part.patterns {
        let mut found: Vec<(Option<u32>, usize)> = channels
            .iter()
            .enumerate()
            .filter_map(|(index, channel)| {
                let (die, name) = strip_die_prefix(&channel.name);
                pattern.matches(name).then_some((die, index))
            })
            .collect();
        if found.iter().any(|(die, _)| die.is_none()) {
            found.retain(|(die, _)| die.is_none());
        }
        found.sort_by_key(|(die, index)| (*die, channels[*index].name.len(), channels[*index].name.clone()));
        found.dedup_by_key(|(_, index)| channels[*index].name.clone());
        if !found.is_empty() {
            return found.into_iter().map(|(_, index)| index).collect();
        }
    }
    Vec::new()
}

/// The content of the list, for reports about unknown chips.
fn describe_channels(channels: &[IoReportChannel]) -> String {
    const MAX_LISTED: usize = 60;
    let mut text = format!("its {} channels, for a bug report:", channels.len());
    for channel in channels.iter().take(MAX_LISTED) {
        let _ = write!(text, " {:?} ({}),", channel.name, channel.unit_label.trim());
    }
    if channels.len() > MAX_LISTED { text + " and others" } else { text.trim_end_matches(',').to_owned() }
}

/// Largest delay of a value: drivers publish in batches, at most 2.23 s apart in measurements.
const MAX_BATCH_NS: u64 = 2_300_000_000;

/// The largest energy of one tick of 41.7 ns, the resolution of a stamp (240 W).
const STAMP_QUANTUM_UJ: u64 = 10;

impl SelectedChannel {
    /// The meter as a domain. The values come from Apple's model of the chip: powermetrics shows the same values and labels
    /// them as estimated.
    pub fn domain(&self, source: &str) -> Domain {
        Domain {
            name: self.domain_name.clone(),
            kind: self.kind,
            source: source.into(),
            device: None,
            parent: Some("psys".into()),
            grade: Grade::Modelled,
            ceiling_mw: Some(plausible_ceiling_mw(self.kind)),
            latency_ns: MAX_BATCH_NS,
            quantum_uj: self.unit.quantum_uj() + STAMP_QUANTUM_UJ,
        }
    }
}

/// Length of the element up to the end of its time stamp, in bytes.
const HEADER_BYTES: usize = 32;

/// The ID of an element and the instant of its publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawElement {
    /// The driver and its channel; constant while both exist.
    pub id: (u64, u64),
    /// The instant of publication, in ticks of the machine's clock; 0 means unknown.
    pub ticks: u64,
}

impl RawElement {
    /// Parses the bytes of `RawElements`; `None` if they are too short.
    pub fn parse(bytes: &[u8]) -> Option<RawElement> {
        let (words, _) = bytes.get(..HEADER_BYTES)?.as_chunks::<8>();
        let &[provider, channel, _kind, ticks] = words else { return None };
        let of = u64::from_le_bytes;
        Some(RawElement { id: (of(provider), of(channel)), ticks: of(ticks) })
    }
}

/// The length of a tick: `mach_timebase_info`'s numerator and denominator, nanoseconds for each tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timebase {
    numerator: u32,
    denominator: u32,
}

impl Timebase {
    /// The timebase from the system's values; `None` if either is 0.
    pub fn new(numerator: u32, denominator: u32) -> Option<Timebase> {
        (numerator > 0 && denominator > 0).then_some(Timebase { numerator, denominator })
    }

    /// The instant of a stamp in nanoseconds of the same clock: the end of the tick, at which the value was certainly
    /// reached, but at most `now_ns`. `None` for an impossible stamp: 0, or in the future.
    pub fn instant_ns(self, ticks: u64, now_ns: u64) -> Option<u64> {
        let ns = |ticks: u128| ticks * u128::from(self.numerator) / u128::from(self.denominator);
        let (begin_ns, end_ns) = (ns(u128::from(ticks)), ns(u128::from(ticks) + 1));
        let is_plausible = ticks > 0 && begin_ns <= u128::from(now_ns);
        is_plausible.then(|| u64::try_from(end_ns).map_or(now_ns, |end_ns| end_ns.min(now_ns)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(name: &str, unit: &str) -> IoReportChannel {
        IoReportChannel { name: name.into(), unit_label: unit.into(), is_simple: true }
    }

    fn names(selection: &ChannelSelection) -> Vec<(&str, &str)> {
        selection
            .channels
            .iter()
            .map(|channel| (channel.domain_name.as_str(), channel.channel_name.as_str()))
            .collect()
    }

    #[test]
    fn only_whole_names_are_meters() {
        let list = [
            channel("CPU Energy", "mJ"),
            channel("PCPU0DTL00", "mJ"),
            channel("CPU Energy SRAM", "mJ"),
            channel("GPU Energy", "nJ"),
            channel("GPU0_0", "mJ"),
            channel("DRAM", "mJ"),
            channel("DRAM DCS", "mJ"),
            channel("ANE0", "mJ"),
            channel("ANE0_SRAM", "mJ"),
            channel("GPU SRAM0", "mJ"),
        ];
        let selection = select_channels(&list);
        let expected = [
            ("cpu", "CPU Energy"),
            ("gpu", "GPU Energy"),
            ("ane", "ANE0"),
            ("dram", "DRAM"),
            ("gpu-sram", "GPU SRAM0"),
        ];
        assert_eq!(names(&selection), expected);
        assert_eq!(selection.notes, Vec::<String>::new());
    }

    #[test]
    fn the_dies_of_an_ultra_are_meters_each_and_a_roll_up_of_both_would_replace_them() {
        let mut list = vec![
            channel("DIE_1_CPU Energy", "mJ"),
            channel("DIE_0_CPU Energy", "mJ"),
            channel("GPU Energy", "nJ"),
            channel("ANE0_1", "mJ"),
            channel("ANE0_0", "mJ"),
            channel("DIE0 DRAM0", "mJ"),
        ];
        let expected = [
            ("cpu-0", "DIE_0_CPU Energy"),
            ("cpu-1", "DIE_1_CPU Energy"),
            ("gpu", "GPU Energy"),
            ("ane-0", "ANE0_0"),
            ("ane-1", "ANE0_1"),
            ("dram", "DIE0 DRAM0"),
        ];
        assert_eq!(names(&select_channels(&list)), expected);
        list.push(channel("CPU Energy", "mJ"));
        assert_eq!(names(&select_channels(&list))[0], ("cpu", "CPU Energy"));
        assert_eq!(names(&select_channels(&list)).len(), 5);
    }

    #[test]
    fn without_the_graphics_roll_up_its_parts_are_taken() {
        let list = [channel("GPU0_0", "mJ"), channel("GPU0_1", "mJ"), channel("GPU SRAM0_0", "mJ")];
        let selection = select_channels(&list);
        let expected = [("gpu-0", "GPU0_0"), ("gpu-1", "GPU0_1"), ("gpu-sram", "GPU SRAM0_0")];
        assert_eq!(names(&selection), expected);
    }

    #[test]
    fn a_unit_is_what_its_label_says_and_an_unknown_one_is_refused_by_name() {
        assert_eq!(parse_unit(" mJ  "), Some(EnergyUnit::MILLIJOULE));
        assert_eq!(parse_unit("nJ").unwrap().to_uj(1_999), 1);
        assert_eq!(parse_unit("uJ"), Some(EnergyUnit::MICROJOULE));
        for label in ["", "MJ", "24Mticks", "mj", "mW", "m J", "events"] {
            assert_eq!(parse_unit(label), None, "{label:?}");
        }
        let selection = select_channels(&[channel("CPU Energy", "zJ"), channel("GPU Energy", "nJ")]);
        assert_eq!(names(&selection), [("gpu", "GPU Energy")]);
        assert!(selection.notes[0].contains("\"CPU Energy\"") && selection.notes[0].contains("\"zJ\""));
    }

    #[test]
    fn a_channel_that_is_no_plain_number_is_refused() {
        let selection =
            select_channels(&[IoReportChannel { is_simple: false, ..channel("CPU Energy", "mJ") }]);
        assert_eq!(selection.channels, []);
        assert!(selection.notes[0].contains("not a single number"), "{:?}", selection.notes);
    }

    #[test]
    fn what_a_list_lacks_is_said_with_what_it_has_instead() {
        let many: Vec<IoReportChannel> = (0..364).map(|nth| channel(&format!("X{nth}"), "mJ")).collect();
        let selection = select_channels(&many);
        assert_eq!(selection.channels, []);
        assert_eq!(selection.notes.len(), 5, "{:?}", selection.notes);
        let last = selection.notes.last().unwrap();
        assert!(last.starts_with("its 364 channels") && last.ends_with("and others") && last.len() < 2_000);
    }

    #[test]
    fn a_name_shown_twice_is_counted_once() {
        let selection = select_channels(&[channel("CPU Energy", "mJ"), channel("CPU Energy", "mJ")]);
        assert_eq!(names(&selection), [("cpu", "CPU Energy")]);
    }

    fn element(words: [u64; 8]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn the_stamp_is_the_fourth_word() {
        let bytes = element([7, 0x4350_555f_4e52_4700, 0x0001_0001, 24_000_000, 11, 22, 33, 44]);
        let parsed = RawElement { id: (7, 0x4350_555f_4e52_4700), ticks: 24_000_000 };
        assert_eq!(RawElement::parse(&bytes), Some(parsed));
        assert_eq!(RawElement::parse(&bytes[..32]), Some(parsed));
    }

    #[test]
    fn too_few_bytes_are_no_element() {
        let bytes = element([1; 8]);
        for length in 0..32 {
            assert_eq!(RawElement::parse(&bytes[..length]), None, "{length}");
        }
    }

    #[test]
    fn a_tick_of_apple_silicon_is_125_thirds_of_a_nanosecond_and_one_of_intels_is_one() {
        let silicon = Timebase::new(125, 3).unwrap();
        assert_eq!(silicon.instant_ns(23_999_999, u64::MAX), Some(1_000_000_000));
        assert_eq!(silicon.instant_ns(1, u64::MAX), Some(83));
        assert_eq!(Timebase::new(1, 1).unwrap().instant_ns(5, 100), Some(6));
        // 584 years of ticks do not fit in nanoseconds, and do not overflow on the way.
        assert_eq!(silicon.instant_ns(u64::MAX, u64::MAX), None);
    }

    #[test]
    fn a_stamp_of_nought_or_from_the_future_is_not_believed_and_none_is_later_than_now() {
        let timebase = Timebase::new(1, 1).unwrap();
        assert_eq!(timebase.instant_ns(0, 1_000), None);
        assert_eq!(timebase.instant_ns(1_001, 1_000), None);
        assert_eq!(timebase.instant_ns(1_000, 1_000), Some(1_000));
        assert_eq!(timebase.instant_ns(999, 1_000), Some(1_000));
    }

    #[test]
    fn a_timebase_of_nought_is_none() {
        assert_eq!(Timebase::new(0, 3), None);
        assert_eq!(Timebase::new(125, 0), None);
    }
}
