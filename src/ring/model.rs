//! The ring under the model checker: every interleaving of a writer that laps a reader, and every value that the memory
//! model allows a load to return.
//!
//! It proves that no sample is torn, and that the fences are necessary; `mod.rs` has the commands. The model has two
//! slots and one thread beside the reader, because the number of interleavings grows exponentially.

use super::*;

fn sample(index: u64) -> Sample {
    let at_ns = index * 10 + 1;
    let reading = EnergyReading {
        valid: true,
        energy_uj: at_ns,
        uncertainty_uj: at_ns,
        stamp_ns: at_ns,
        epoch: at_ns as u32,
        shape_uj: at_ns,
    };
    Sample { before_ns: at_ns, after_ns: at_ns, readings: vec![reading] }
}

#[test]
fn a_reader_that_is_lapped_gets_a_whole_sample_or_none() {
    loom::model(|| {
        let (mut writer, reader) = ring(2, 1);
        writer.push(&sample(0));
        writer.push(&sample(1));
        // Index 2 overwrites the slot of index 0 while it is read.
        let lap = loom::thread::spawn(move || writer.push(&sample(2)));
        let mut into = Sample::empty(1);
        if reader.read(0, &mut into) {
            assert_eq!(into, sample(0), "torn");
        }
        lap.join().unwrap();
    });
}

#[test]
fn a_counted_sample_can_be_read_whole() {
    loom::model(|| {
        let (mut writer, reader) = ring(2, 1);
        let push = loom::thread::spawn(move || writer.push(&sample(0)));
        let mut into = Sample::empty(1);
        if reader.written_count() == 1 {
            assert!(reader.read(0, &mut into));
            assert_eq!(into, sample(0));
        }
        push.join().unwrap();
    });
}

#[test]
fn a_search_that_is_lapped_returns_no_sample_after_the_instant() {
    loom::model(|| {
        let (mut writer, reader) = ring(2, 0);
        writer.push(&Sample { before_ns: 1, after_ns: 1, readings: Vec::new() });
        writer.push(&Sample { before_ns: 11, after_ns: 11, readings: Vec::new() });
        let lap = loom::thread::spawn(move || {
            writer.push(&Sample { before_ns: 21, after_ns: 21, readings: Vec::new() });
        });
        assert_eq!(reader.find_at_or_before(15), Some(1));
        assert!(matches!(reader.find_at_or_before(5), Some(0) | None));
        lap.join().unwrap();
    });
}
