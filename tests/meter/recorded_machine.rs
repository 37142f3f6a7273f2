//! Recorded traces as a source: replayed readings equal the recorded ones, and errors of broken traces.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use wattspan::clock::Clock;
use wattspan::domain::{Domain, EnergyReading};
use wattspan::sources::replay::recorder::TraceRecorder;
use wattspan::sources::replay::script::Script;
use wattspan::sources::replay::trace::RecordedTrace;
use wattspan::sources::{OpenedSource, SourceSettings, discover, replay};

const MS: u64 = 1_000_000;

fn machine(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/machines").join(name)
}

fn header() -> String {
    let text = std::fs::read_to_string(machine("laptop.jsonl")).unwrap();
    text.lines().next().unwrap().to_owned()
}

/// The scripted laptop for a tenth of a second, read every millisecond, as a repeating recording.
fn recording() -> (Vec<Domain>, Vec<u8>) {
    let script = Script::parse(&std::fs::read_to_string(machine("laptop.toml")).unwrap()).unwrap();
    let clock = Clock::manual(5_000 * MS);
    let mut opened = replay::start_script(script, &clock);
    let mut out = Vec::new();
    let mut recorder = TraceRecorder::new(&mut out, &opened.domains, true).unwrap();
    let mut readings = vec![EnergyReading::default(); 2];
    for tick in 0..=100 {
        let at_ns = 5_000 * MS + tick * MS;
        clock.set(at_ns);
        opened.source.read(&mut readings);
        recorder.record(0, at_ns, at_ns + 1_500, &readings).unwrap();
    }
    recorder.flush().unwrap();
    drop(recorder);
    (opened.domains, out)
}

/// Starts a replay of `text`, recorded at 9 s of a manual clock.
fn started(text: &[u8]) -> (OpenedSource, Clock) {
    let clock = Clock::manual(9_000 * MS);
    let opened = replay::start_trace(RecordedTrace::parse(text).unwrap(), &clock);
    (opened, clock)
}

fn read(opened: &mut OpenedSource, clock: &Clock, since_start_ns: u64) -> Vec<EnergyReading> {
    let mut readings = vec![EnergyReading::default(); opened.domains.len()];
    clock.set(9_000 * MS + since_start_ns);
    opened.source.read(&mut readings);
    readings
}

#[test]
fn the_recorded_laptop_is_what_recording_the_scripted_one_gives() {
    let (_, recorded) = recording();
    let anew = Path::new(env!("CARGO_TARGET_TMPDIR")).join("laptop.jsonl");
    std::fs::write(&anew, &recorded).unwrap();
    let kept = std::fs::read(machine("laptop.jsonl")).unwrap();
    assert!(recorded == kept, "if the change is meant, copy {} over the fixture", anew.display());
}

#[test]
fn what_was_recorded_comes_back_domain_for_domain_and_reading_for_reading() {
    let (domains, recorded) = recording();
    let (mut opened, clock) = started(&recorded);
    assert_eq!(opened.domains, domains);
    assert_eq!(opened.advanced, [true, true]);
    let first = read(&mut opened, &clock, 1_500);
    assert_eq!((first[0].energy_uj, first[1].energy_uj), (0, 0));
    let middle = read(&mut opened, &clock, 50 * MS + 1_500);
    assert!(middle[0].energy_uj > 20 * 12_000 && middle[0].energy_uj <= 20 * 12_000 + 30 * 45_000);
    assert!(!read(&mut opened, &clock, 85 * MS)[1].valid);
    assert_eq!(read(&mut opened, &clock, 95 * MS)[1].epoch, 1);
}

#[test]
fn nothing_is_known_before_the_first_recorded_reading() {
    let (_, recorded) = recording();
    let (mut opened, clock) = started(&recorded);
    assert!(read(&mut opened, &clock, 0).iter().all(|reading| !reading.valid));
}

#[test]
fn a_looped_trace_goes_on_growing_round_after_round() {
    let (_, recorded) = recording();
    let (mut opened, clock) = started(&recorded);
    let mut last = read(&mut opened, &clock, 1_500);
    for tick in 1..1_000 {
        let readings = read(&mut opened, &clock, tick * MS + 1_500);
        for (reading, last) in readings.iter().zip(&mut last) {
            if reading.valid {
                assert!(reading.energy_uj >= last.energy_uj && reading.epoch >= last.epoch);
                *last = *reading;
            }
        }
    }
    // 1.99 J in each of ten rounds, all in the epoch of the first: the trace has no gap for the package.
    assert!(last[0].energy_uj > 9 * 1_900_000, "{}", last[0].energy_uj);
    assert_eq!(last[0].epoch, 0);
    assert_eq!(last[1].epoch, 10);
}

#[test]
fn a_trace_that_does_not_loop_holds_its_last_readings() {
    let (_, recorded) = recording();
    let text = String::from_utf8(recorded).unwrap().replacen("\"loop\":true", "\"loop\":false", 1);
    let (mut opened, clock) = started(text.as_bytes());
    let end = read(&mut opened, &clock, 101 * MS);
    assert_eq!(read(&mut opened, &clock, 100_000 * MS), end);
}

#[test]
fn sources_of_one_machine_are_recorded_into_one_trace() {
    let text = format!(
        "{}\n{}\n{}\n{}\n",
        header(),
        r#"{"first":0,"before_ns":100,"after_ns":200,"readings":[[10,0,0,0]]}"#,
        r#"{"first":1,"before_ns":120,"after_ns":250,"readings":[[70,5,150,3]]}"#,
        r#"{"first":0,"before_ns":300,"after_ns":400,"readings":[[20,0,0,0]]}"#,
    );
    let (mut opened, clock) = started(text.replacen("true", "false", 1).as_bytes());
    let readings = read(&mut opened, &clock, 160);
    assert_eq!((readings[0].energy_uj, readings[1].energy_uj, readings[1].uncertainty_uj), (10, 70, 5));
    assert_eq!((readings[1].epoch, readings[1].stamp_ns), (3, 9_000 * MS + 50));
    assert_eq!(read(&mut opened, &clock, 300)[0].energy_uj, 20);
}

#[test]
fn a_recording_file_is_opened_as_the_only_source() {
    let settings = SourceSettings { replay: Some(machine("laptop.jsonl")), ..SourceSettings::default() };
    let found = discover(&settings, &Clock::manual(0));
    assert!(found.absent.is_empty());
    assert_eq!((found.opened.len(), found.opened[0].name), (1, "replay"));
}

#[test]
fn a_last_line_that_was_cut_is_left_out() {
    let (_, recorded) = recording();
    let whole = RecordedTrace::parse(recorded.as_slice()).unwrap();
    let cut = RecordedTrace::parse(&recorded[..recorded.len() - 5]).unwrap();
    assert_eq!(cut.domains, whole.domains);
    let broken = String::from_utf8(recorded)
        .unwrap()
        .replace("\"first\":0,\"before_ns\":5050", "\"first\":0,\"before");
    assert!(RecordedTrace::parse(broken.as_bytes()).is_err(), "a broken line in the middle is no cut");
}

fn refusal(lines: &[&str]) -> String {
    RecordedTrace::parse(format!("{}\n", lines.join("\n")).as_bytes()).unwrap_err().to_string()
}

#[test]
fn every_wrong_line_is_named_with_its_number_and_field() {
    let header = header();
    let good = r#"{"first":0,"before_ns":100,"after_ns":200,"readings":[[10,0,0,1],null]}"#;
    for (start, line) in [
        ("line 3: field `first`: ", r#"{"before_ns":300,"after_ns":400,"readings":[]}"#),
        ("line 3: field `before_ns`: ", r#"{"first":0,"before_ns":"now","after_ns":400,"readings":[]}"#),
        ("line 3: field `after_ns`: ", r#"{"first":0,"before_ns":300,"after_ns":200,"readings":[]}"#),
        (
            "line 3: field `readings`: ",
            r#"{"first":1,"before_ns":300,"after_ns":400,"readings":[null,null]}"#,
        ),
        (
            "line 3: field `readings`: ",
            r#"{"first":18446744073709551615,"before_ns":3,"after_ns":4,"readings":[null]}"#,
        ),
        (
            "line 3: field `readings[0]`: ",
            r#"{"first":0,"before_ns":300,"after_ns":400,"readings":[[-1,0,0,1]]}"#,
        ),
        (
            "line 3: field `readings[0]`: decreases",
            r#"{"first":0,"before_ns":300,"after_ns":400,"readings":[[9,0,0,1]]}"#,
        ),
        (
            "line 3: field `readings[0]`: returns",
            r#"{"first":0,"before_ns":300,"after_ns":400,"readings":[[10,0,0,0]]}"#,
        ),
        (
            "line 3: field `readings[0]`: is not later",
            r#"{"first":0,"before_ns":100,"after_ns":200,"readings":[null,null]}"#,
        ),
        (
            "line 3: field `extra`: is unknown",
            r#"{"first":0,"before_ns":300,"after_ns":400,"readings":[],"extra":1}"#,
        ),
        ("line 3: is not a JSON object", "[1, 2]"),
        ("line 3: is not JSON", "{\"first\":"),
    ] {
        let refused = refusal(&[&header, good, line]);
        assert!(refused.starts_with(start), "{refused} does not start with {start}");
    }
}

#[test]
fn a_wrong_header_is_named() {
    for (start, line) in [
        ("line 1: is not JSON", ""),
        ("line 1: field `wattspan_trace`: ", r#"{"domains":[]}"#),
        ("line 1: field `wattspan_trace`: is version 2", r#"{"wattspan_trace":2,"domains":[]}"#),
        ("line 1: field `domains`: ", r#"{"wattspan_trace":1,"domains":[]}"#),
        (
            "line 1: field `domains[0]`: missing field `kind`",
            r#"{"wattspan_trace":1,"domains":[{"name":"a"}]}"#,
        ),
        ("line 1: field `loop`: ", r#"{"wattspan_trace":1,"loop":"yes","domains":[]}"#),
    ] {
        let refused = refusal(&[line]);
        assert!(refused.starts_with(start), "{refused} does not start with {start}");
    }
    assert_eq!(refusal(&[&header()]), "line 2: the trace has no reading");
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_of_traces_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = RecordedTrace::parse(bytes.as_slice());
    }

    #[test]
    fn no_damage_to_a_good_trace_makes_the_parser_or_the_machine_panic(
        at in 0.0_f64..1.0, cut in 0_usize..40, put in "[0-9eE.,:\\[\\]{}\"a-z \\n-]{0,12}",
        instants in proptest::collection::vec(any::<u64>(), 1..20),
    ) {
        let mut text = std::fs::read_to_string(machine("laptop.jsonl")).unwrap();
        let at = (at * text.len() as f64) as usize;
        let end = (at + cut).min(text.len());
        text.replace_range(at..end, &put);
        if let Ok(trace) = RecordedTrace::parse(text.as_bytes()) {
            let clock = Clock::manual(0);
            let mut opened = replay::start_trace(trace, &clock);
            let mut readings = vec![EnergyReading::default(); opened.domains.len()];
            for instant in instants {
                clock.set(instant);
                opened.source.read(&mut readings);
            }
        }
    }
}

#[test]
fn the_power_within_a_counters_steps_is_recorded_and_replayed() {
    let (domains, _) = recording();
    let reading = |valid: bool, energy_uj: u64, shape_uj: u64| EnergyReading {
        valid,
        energy_uj: if valid { energy_uj } else { 0 },
        shape_uj,
        ..EnergyReading::default()
    };
    // The counter is read in every second sample, the power in every one; the second domain has no power sensor.
    let shown = |tick: u64| {
        [reading(tick.is_multiple_of(2), 100 * (tick / 2 + 1), 60 * tick + 1), reading(true, tick * 10, 0)]
    };
    let mut out = Vec::new();
    let mut recorder = TraceRecorder::new(&mut out, &domains[..2], true).unwrap();
    for tick in 0..=10 {
        recorder.record(0, tick * MS, tick * MS + 1, &shown(tick)).unwrap();
    }
    recorder.flush().unwrap();
    drop(recorder);
    let (mut opened, clock) = started(&out);
    for tick in 0..10 {
        assert_eq!(read(&mut opened, &clock, tick * MS + 1), shown(tick), "{tick}");
    }
    // The next round continues from where this one ended.
    let next = read(&mut opened, &clock, 10 * MS + 1 + MS + 1);
    assert_eq!(next[0].shape_uj, 600 + 60 + 1);
    assert_eq!(next[1].energy_uj, 100 + 10);
}
