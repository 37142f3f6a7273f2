//! The ring on the machine's own atomics: samples come out as written, the oldest is overwritten first, searches agree
//! with a linear scan, and readers that are lapped all the time see no torn sample.

use std::sync::atomic::AtomicBool;

use super::*;

/// Every word depends on the index, so that a mix of two samples is detected.
fn sample(index: u64, domains: usize) -> Sample {
    let reading = |domain: usize| {
        let word = index * 1000 + domain as u64;
        let valid = word.is_multiple_of(2);
        EnergyReading {
            valid,
            energy_uj: word,
            uncertainty_uj: !word,
            stamp_ns: word << 8,
            epoch: index as u32,
            shape_uj: word << 16,
        }
    };
    let readings = (0..domains).map(reading).collect();
    Sample { before_ns: index * 100, after_ns: index * 100 + 10, readings }
}

#[test]
fn an_empty_ring_has_nothing_to_read() {
    let (_writer, reader) = ring(4, 1);
    assert_eq!((reader.written_count(), reader.oldest_index()), (0, 0));
    assert!(!reader.read(0, &mut Sample::empty(1)));
    assert_eq!(reader.find_at_or_before(u64::MAX), None);
}

#[test]
fn a_sample_is_read_as_written() {
    let (mut writer, reader) = ring(4, 3);
    writer.push(&sample(0, 3));
    let mut into = Sample::empty(0);
    assert!(reader.read(0, &mut into));
    assert_eq!(into, sample(0, 3));
}

#[test]
fn the_largest_epoch_and_count_survive_the_packing() {
    let (mut writer, reader) = ring(1, 1);
    let reading = EnergyReading {
        valid: true,
        energy_uj: u64::MAX,
        uncertainty_uj: u64::MAX,
        stamp_ns: 1,
        epoch: u32::MAX,
        shape_uj: u64::MAX,
    };
    writer.push(&Sample { before_ns: u64::MAX, after_ns: u64::MAX, readings: vec![reading] });
    let mut into = Sample::empty(1);
    assert!(reader.read(0, &mut into));
    assert_eq!(into.readings, vec![reading]);
}

#[test]
fn the_capacity_is_rounded_up_and_the_oldest_is_overwritten_first() {
    let (mut writer, reader) = ring(3, 1);
    assert_eq!(reader.capacity(), 4);
    (0..6).for_each(|index| writer.push(&sample(index, 1)));
    let mut into = Sample::empty(1);
    assert_eq!((reader.written_count(), reader.oldest_index()), (6, 2));
    let kept: Vec<bool> = (0..7).map(|index| reader.read(index, &mut into)).collect();
    assert_eq!(kept, [false, false, true, true, true, true, false]);
}

#[test]
fn find_returns_the_last_sample_that_ended_by_the_instant() {
    let (mut writer, reader) = ring(8, 1);
    (0..20).for_each(|index| writer.push(&sample(index, 1)));
    for (at_ns, index) in [(1210, Some(12)), (1309, Some(12)), (1310, Some(13)), (u64::MAX, Some(19))] {
        assert_eq!(reader.find_at_or_before(at_ns), index, "at {at_ns}");
    }
    assert_eq!(reader.find_at_or_before(1209), None, "sample 12 is the oldest kept and ended at 1210");
}

#[test]
fn find_agrees_with_a_linear_scan_at_every_instant() {
    let (mut writer, reader) = ring(4, 1);
    for written in 0..12 {
        for at_ns in 0..1300 {
            let expected = (reader.oldest_index()..written).filter(|index| index * 100 + 10 <= at_ns).max();
            assert_eq!(reader.find_at_or_before(at_ns), expected, "{written} written, at {at_ns}");
        }
        writer.push(&sample(written, 1));
    }
}

#[test]
fn readers_that_are_lapped_all_the_time_never_see_a_torn_sample() {
    const DOMAINS: usize = 4;
    // Fewer where an interpreter runs the test.
    let samples = std::env::var("WATTSPAN_SAMPLES").map_or(200_000, |text| text.parse().unwrap());
    let (mut writer, reader) = ring(8, DOMAINS);
    let done = AtomicBool::new(false);
    let check = || {
        let (mut into, mut whole) = (Sample::empty(DOMAINS), 0_u64);
        while !done.load(Ordering::Relaxed) || whole == 0 {
            for index in reader.oldest_index()..reader.written_count() {
                if reader.read(index, &mut into) {
                    assert_eq!(into, sample(index, DOMAINS));
                    whole += 1;
                }
            }
            if let Some(index) = reader.find_at_or_before(reader.written_count() * 50) {
                assert!(index * 100 + 10 <= reader.written_count() * 50);
            }
        }
        whole
    };
    std::thread::scope(|scope| {
        let readers = [scope.spawn(check), scope.spawn(check)];
        (0..samples).for_each(|index| writer.push(&sample(index, DOMAINS)));
        done.store(true, Ordering::Relaxed);
        for reader in readers {
            assert!(reader.join().unwrap() > 0, "the reader read no sample, so the test proves nothing");
        }
    });
}
