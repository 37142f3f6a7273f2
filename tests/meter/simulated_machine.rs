//! Scripted machines as a source: their counters against the known truth, and errors of broken scripts.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use wattspan::clock::Clock;
use wattspan::domain::EnergyReading;
use wattspan::sources::replay::script::{ParseScriptError, Script};
use wattspan::sources::{Inventory, OpenedSource, SourceSettings, discover, replay};

const MS: u64 = 1_000_000;

fn machine(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/machines").join(name)
}

fn script(name: &str) -> Script {
    Script::parse(&std::fs::read_to_string(machine(name)).unwrap()).unwrap()
}

/// The machine, started at 7 s of a manual clock.
fn started(script: Script) -> (OpenedSource, Clock) {
    let clock = Clock::manual(7_000 * MS);
    let opened = replay::start_script(script, &clock);
    (opened, clock)
}

/// Reads the machine every `step_ns` until `end_ns` after its start; all readings of each domain with their instants.
fn watch(script: Script, step_ns: u64, end_ns: u64) -> Vec<Vec<(u64, EnergyReading)>> {
    let (mut opened, clock) = started(script);
    let mut readings = vec![EnergyReading::default(); opened.domains.len()];
    let mut seen = vec![Vec::new(); opened.domains.len()];
    for since_start_ns in (0..=end_ns).step_by(usize::try_from(step_ns).unwrap()) {
        clock.set(7_000 * MS + since_start_ns);
        opened.source.read(&mut readings);
        for (seen, reading) in seen.iter_mut().zip(&readings) {
            seen.push((since_start_ns, *reading));
        }
    }
    seen
}

fn one(text: &str) -> Script {
    Script::parse(&format!("[[domain]]\nname = \"package-0\"\nkind = \"package\"\n{text}")).unwrap()
}

#[test]
fn every_counter_of_the_server_stays_within_one_update_and_one_step_of_the_truth() {
    let script = script("server.toml");
    for (domain, seen) in watch(script.clone(), 731_000, 2_300 * MS).iter().enumerate() {
        let simulated = &script.domains[domain];
        let stale_ns = simulated.update_ns + simulated.jitter_ns + simulated.domain.latency_ns;
        for (at_ns, reading) in seen {
            let newest_nj = script.true_energy_nj(domain, *at_ns);
            let oldest_nj = script.true_energy_nj(domain, at_ns.saturating_sub(stale_ns + 33 * MS));
            let shown_nj = u128::from(reading.energy_uj) * 1_000;
            assert!(reading.valid && reading.epoch == 0);
            assert!(shown_nj <= newest_nj, "{}: {shown_nj} > {newest_nj}", simulated.domain.name);
            assert!(
                shown_nj + u128::from(simulated.domain.quantum_uj) * 1_000 > oldest_nj,
                "{}",
                simulated.domain.name
            );
        }
    }
}

#[test]
fn the_platform_of_the_server_is_the_sum_of_its_parts_and_sixty_watts() {
    let script = script("server.toml");
    let of = |name: &str, at_ns| {
        let domain = script.domains.iter().position(|domain| domain.domain.name == name).unwrap();
        script.true_energy_nj(domain, at_ns)
    };
    for at_ns in [0, 123 * MS, 250 * MS, 777 * MS, 5_001 * MS] {
        let parts: u128 =
            ["package-0", "package-1", "dram-0", "dram-1"].iter().map(|name| of(name, at_ns)).sum();
        assert_eq!(of("psys", at_ns), parts + 60 * u128::from(at_ns));
    }
}

#[test]
fn a_counter_moves_at_its_updates_and_shows_them_after_its_latency() {
    let script =
        one("profile = [[1.0, 100]]\nupdate_ns = 1_000_000\nphase_ns = 200_000\nlatency_ns = 50_000\n");
    let (mut opened, clock) = started(script);
    let mut energy_at = |since_start_ns: u64| {
        clock.set(7_000 * MS + since_start_ns);
        let mut reading = [EnergyReading::default()];
        opened.source.read(&mut reading);
        reading[0].energy_uj
    };
    assert_eq!(energy_at(0), 0);
    assert_eq!(energy_at(249_999), 0);
    assert_eq!(energy_at(250_000), 20_000);
    assert_eq!(energy_at(1_249_999), 20_000);
    assert_eq!(energy_at(1_250_000), 120_000);
}

#[test]
fn late_updates_come_in_their_order_and_never_before_their_time() {
    let script = one("profile = [[1.0, 1000]]\nceiling_w = 1000\njitter_ns = 999_999\n");
    let seen = watch(script, 10_000, 200 * MS);
    let mut moves = 0;
    for pair in seen[0].windows(2) {
        assert!(pair[1].1.energy_uj >= pair[0].1.energy_uj);
        moves += u32::from(pair[1].1.energy_uj > pair[0].1.energy_uj);
    }
    for (at_ns, reading) in &seen[0] {
        // 1000 W are 1 µJ per nanosecond, so the energy equals the instant of the update.
        let update_ns = reading.energy_uj;
        assert!(update_ns <= *at_ns && at_ns - update_ns < 2 * MS + 1_000);
    }
    assert!((190..=200).contains(&moves), "{moves}");
}

#[test]
fn a_counter_that_wraps_four_times_a_second_loses_nothing() {
    let script = script("faults.toml");
    let seen = watch(script.clone(), 900_000, 4_000 * MS);
    let (at_ns, last) = seen[0].last().unwrap();
    assert_eq!(last.epoch, 0);
    let truth_uj = script.true_energy_nj(0, *at_ns) / 1_000;
    assert!(truth_uj > 10 * 49_999_992, "the counter wrapped ten times");
    assert!(u128::from(last.energy_uj) <= truth_uj);
    assert!(truth_uj - u128::from(last.energy_uj) < 1_000_000 * 200 / 1_000 + 61);
}

#[test]
fn a_restart_costs_an_epoch_and_invents_no_energy() {
    let script = script("faults.toml");
    let seen = watch(script.clone(), 500_000, 1_000 * MS);
    let (before, after): (Vec<_>, Vec<_>) = seen[1].iter().partition(|(at_ns, _)| *at_ns < 750 * MS);
    assert!(before.iter().all(|(_, reading)| reading.epoch == 0));
    assert!(after.iter().all(|(_, reading)| reading.epoch == 1));
    assert_eq!(before.last().unwrap().1.energy_uj, after[0].1.energy_uj);
    let truth_uj = script.true_energy_nj(1, 1_000 * MS) / 1_000;
    assert!(u128::from(after.last().unwrap().1.energy_uj) <= truth_uj);
}

#[test]
fn a_domain_that_goes_away_is_invalid_and_comes_back_in_a_new_epoch() {
    let seen = watch(script("faults.toml"), MS, 700 * MS);
    for (at_ns, reading) in &seen[2] {
        let away = (500 * MS..600 * MS).contains(at_ns);
        assert_eq!(reading.valid, !away);
        if reading.valid {
            assert_eq!(reading.epoch, u32::from(*at_ns >= 600 * MS));
        }
    }
    assert_eq!(seen[2][499].1.energy_uj, seen[2][600].1.energy_uj, "what it used while away is not claimed");
}

#[test]
fn a_stamped_counter_tells_the_instant_for_which_its_energy_is_the_truth() {
    let script = script("faults.toml");
    let seen = watch(script.clone(), 700_000, 500 * MS);
    for (at_ns, reading) in &seen[4] {
        let stamped_ns = reading.stamp_ns - 7_000 * MS;
        assert!(stamped_ns <= *at_ns);
        let truth_uj = script.true_energy_nj(4, stamped_ns) / 1_000;
        assert_eq!(u128::from(reading.energy_uj), truth_uj / 1_000 * 1_000);
    }
}

#[test]
fn a_stuck_counter_is_listed_and_marked() {
    let settings = SourceSettings { replay: Some(machine("faults.toml")), ..SourceSettings::default() };
    let Inventory { opened, absent, .. } = discover(&settings, &Clock::manual(0));
    assert!(absent.is_empty());
    assert_eq!(opened.len(), 1, "a replay is the only source");
    assert_eq!(opened[0].advanced, [true, true, true, false, true]);
    assert_eq!(opened[0].domains[3].name, "psys");
}

#[test]
fn a_replay_that_is_not_there_or_broken_is_absent_with_its_path_and_line() {
    let say = |path: PathBuf| {
        let found =
            discover(&SourceSettings { replay: Some(path), ..SourceSettings::default() }, &Clock::Machine);
        assert!(found.opened.is_empty());
        (found.absent[0].source.clone(), found.absent[0].reason.clone())
    };
    let (source, reason) = say("/nonexistent/machine.toml".into());
    assert_eq!(source, "replay");
    assert!(reason.starts_with("/nonexistent/machine.toml: "), "{reason}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("machine.toml");
    std::fs::write(
        &path,
        "[[domain]]\nname = \"a\"\nkind = \"package\"\nprofile = [[1, 5]]\nupdate_ns = 0\n",
    )
    .unwrap();
    let (_, reason) = say(path);
    assert!(reason.contains("line 1: domain \"a\": field `update_ns`: is 0"), "{reason}");
}

fn refusal(text: &str) -> String {
    Script::parse(text).unwrap_err().to_string()
}

#[test]
fn every_wrong_value_is_named_with_its_field_and_the_line_of_its_domain() {
    let head = "name = \"m\"\n\n[[domain]]\nname = \"a\"\nkind = \"gpu\"\n";
    for (field, text) in [
        ("profile", "profile = []"),
        ("profile", "profile = [[0, 100]]"),
        ("profile", "profile = [[1, -5]]"),
        ("profile", "profile = [[1, nan]]"),
        ("profile", "profile = [[1e300, 5]]"),
        ("profile", "profile = [[1, 100]]\nceiling_w = 50"),
        ("ceiling_w", "profile = [[1, 100]]\nceiling_w = inf"),
        ("quantum_uj", "profile = [[1, 100]]\nquantum_uj = 0"),
        ("jitter_ns", "profile = [[1, 100]]\njitter_ns = 1_000_000"),
        ("wrap_uj", "profile = [[1, 100]]\nquantum_uj = 61\nwrap_uj = 1000"),
        ("back_at_s", "profile = [[1, 100]]\nback_at_s = 3.0"),
        ("back_at_s", "profile = [[1, 100]]\nlost_at_s = 3.0\nback_at_s = 3.0"),
        ("lost_at_s", "profile = [[1, 100]]\nlost_at_s = -1.0"),
    ] {
        let refused = refusal(&format!("{head}{text}\n"));
        assert!(refused.starts_with(&format!("line 3: domain \"a\": field `{field}`: ")), "{refused}");
    }
    let twice =
        format!("{head}profile = [[1, 1]]\n[[domain]]\nname = \"a\"\nkind = \"gpu\"\nprofile = [[1, 1]]\n");
    assert!(refusal(&twice).starts_with("line 7: domain \"a\": field `name`: is used twice"));
}

#[test]
fn unknown_missing_and_mistyped_fields_are_named_with_their_line() {
    let head = "[[domain]]\nname = \"a\"\nkind = \"gpu\"\n";
    for (text, line, field) in [
        ("profile = [[1, 5]]\nupdate_us = 5\n", "line 5", "update_us"),
        ("profile = [[1, 5]]\nupdate_ns = \"fast\"\n", "line 5", "update_ns"),
        ("update_ns = 5000\n", "line 1", "profile"),
        ("profile = [[1, 5]]\nstuck = ", "line 5", "stuck"),
    ] {
        let refused = refusal(&format!("{head}{text}"));
        assert!(refused.contains(line) && refused.contains(field), "{refused}");
    }
    assert!(
        refusal("[[domain]]\nname = \"a\"\nkind = \"toaster\"\nprofile = [[1, 5]]\n").contains("toaster")
    );
    assert_eq!(Script::parse("name = \"nothing\"\n"), Err(ParseScriptError::Empty));
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_of_scripts_panic(text in "\\PC{0,200}") {
        let _ = Script::parse(&text);
    }

    #[test]
    fn no_damage_to_a_good_script_makes_the_parser_or_the_machine_panic(
        at in 0.0_f64..1.0, cut in 0_usize..40, put in "[0-9eE.,=_\\[\\]\"a-z \\n-]{0,12}",
        instants in proptest::collection::vec(any::<u64>(), 1..20),
    ) {
        let mut text = std::fs::read_to_string(machine("faults.toml")).unwrap();
        let at = (at * text.len() as f64) as usize;
        let end = (at + cut).min(text.len());
        text.replace_range(at..end, &put);
        if let Ok(script) = Script::parse(&text) {
            let (mut opened, clock) = started(script);
            let mut readings = vec![EnergyReading::default(); opened.domains.len()];
            for instant in instants {
                clock.set(instant);
                opened.source.read(&mut readings);
            }
        }
    }

    #[test]
    fn any_profile_read_at_any_rate_gives_the_truth_at_the_last_update(
        steps in proptest::collection::vec((1_u32..300, 0_u32..=400), 1..8),
        update_us in 100_u64..5_000, step_us in 50_u64..9_000, quantum_uj in 1_u64..2_000,
    ) {
        let steps: Vec<String> = steps.iter().map(|(ms, watts)| format!("[{}, {watts}]", f64::from(*ms) / 1e3)).collect();
        let script = one(&format!(
            "profile = [{}]\nupdate_ns = {}\nquantum_uj = {quantum_uj}\nwrap_uj = {}\nceiling_w = 400\n",
            // A wrap takes longer than an update and a step at the highest plausible power, 2,000 W; else it would be ambiguous.
            steps.join(", "), update_us * 1_000, quantum_uj * 40_000_000,
        ));
        for (at_ns, reading) in &watch(script.clone(), step_us * 1_000, 300 * MS)[0] {
            let update_ns = at_ns / (update_us * 1_000) * update_us * 1_000;
            let truth_uj = script.true_energy_nj(0, update_ns) / 1_000;
            prop_assert_eq!(reading.epoch, 0);
            prop_assert_eq!(u128::from(reading.energy_uj), truth_uj / u128::from(quantum_uj) * u128::from(quantum_uj));
        }
    }
}
