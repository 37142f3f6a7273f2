//! `wattspan ipw` against the truth: a server, a runner and a meter in this process, on a simulated machine of varying
//! power. Also: no token of a fast server is lost.

use crate::ipw_runs::{RunSpec, fetch_accounts, run_metered, run_questions, weight_interval};
use crate::llm_stub::LlmStub;
use crate::support::in_process::{InProcessService, VARYING_POWER_MACHINE, WeightInterval};
use wattspan::clock::monotonic_ns;
use wattspan_ipw::run::Workload;
use wattspan_ipw::run_dir::for_each_text;

const DOMAINS: [&str; 2] = ["package-0", "gpu-0"];

/// Every query's energy contains the truth, every microjoule is accounted for, and every query has a row.
fn assert_holds_ground_truth(at_once: usize, questions: usize) {
    let (machine, llm) = (InProcessService::start(VARYING_POWER_MACHINE, 2), LlmStub::start());
    let dir = tempfile::tempdir().unwrap();
    let spec = RunSpec { model: "good-100", pace: Workload::ClosedLoop(at_once), questions, repeats: 1 };
    let (rows, client) = run_metered(&machine, &llm, &DOMAINS, &spec, dir.path());
    assert_eq!(rows.len(), questions);
    assert!(rows.iter().all(|row| row.score == Some(1.0) && row.duration_ns >= 100_000_000));
    assert!(rows.iter().all(|row| row.energy.is_some()), "{rows:?}");
    let accounts = fetch_accounts(&client, &rows);
    // This process is only the client; a share of its own CPU time would be taken for the server's.
    let shares = accounts.iter().map(|account| (account.process, &account.process_reason));
    assert!(shares.clone().all(|share| share == (None, &None)), "{:?}", shares.collect::<Vec<_>>());
    let all: Vec<WeightInterval> = accounts.iter().map(weight_interval).collect();
    for (row, span) in rows.iter().zip(&all) {
        let Some(energy) = &row.energy else { continue };
        assert!(energy.span_ns.abs_diff(row.duration_ns) <= energy.moved_ns, "{row:?}");
        assert_eq!(energy.prefill_uj.unwrap() + energy.decode_uj.unwrap(), energy.share_uj.unwrap());
        let mut whole = (0.0, 0.0);
        for (domain, part) in energy.domains.iter().enumerate() {
            let (truth_uj, doubt_uj) = machine.share_uj(domain, *span, &all);
            let (share_uj, error_uj) = (part.share_uj.unwrap() as f64, part.error_uj.unwrap() as f64);
            assert!(
                (share_uj - truth_uj).abs() <= error_uj + doubt_uj + 1.0,
                "{share_uj} \u{b1} {error_uj}, but truly {truth_uj}: {row:?}"
            );
            whole = (whole.0 + truth_uj, whole.1 + doubt_uj);
        }
        let (share_uj, error_uj) = (energy.share_uj.unwrap() as f64, energy.error_uj.unwrap() as f64);
        assert!(
            (share_uj - whole.0).abs() <= error_uj + whole.1 + 1.0,
            "{share_uj} against {whole:?}: {row:?}"
        );
    }
    for (domain, of) in client.balance().unwrap().iter().enumerate() {
        assert_eq!(of.measured_uj, of.attributed_uj + of.unattributed_uj, "{of:?}");
        let given: u64 = accounts.iter().map(|account| account.domains[domain].share_uj.unwrap()).sum();
        assert_eq!(of.attributed_uj, given, "{of:?}");
    }
}

#[test]
fn queries_one_after_another_get_energies_that_hold_the_truth() {
    assert_holds_ground_truth(1, 12);
}

#[test]
fn queries_side_by_side_get_energies_that_hold_the_truth() {
    assert_holds_ground_truth(8, 48);
}

#[test]
fn no_token_of_128_parallel_streams_is_lost() {
    let (machine, llm) = (InProcessService::start(VARYING_POWER_MACHINE, 2), LlmStub::start());
    let dir = tempfile::tempdir().unwrap();
    // 128 streams with a token every 12.8 ms are 10,000 tokens per second, which only the client counts.
    let spec =
        RunSpec { model: "pours-60-12800", pace: Workload::ClosedLoop(128), questions: 50, repeats: 6 };
    let (rows, client) = run_metered(&machine, &llm, &DOMAINS, &spec, dir.path());
    assert_eq!((rows.len(), llm.requests()), (300, 300));
    for row in &rows {
        assert_eq!((&row.error, row.tokens_out, row.tokens_estimated), (&None, Some(60), true), "{row:?}");
        assert_eq!(row.finish.as_deref(), Some("length"), "{row:?}");
        assert!(row.energy.is_some() != row.unmetered.is_some(), "{row:?}");
    }
    let poured: String = (0..60).map(|number| format!(" {number}")).collect();
    let mut texts = 0;
    for_each_text(dir.path(), |text| {
        assert_eq!(text.reply, poured);
        texts += 1;
    })
    .unwrap();
    assert_eq!(texts, 300);
    let balance = client.balance().unwrap();
    assert!(!balance.is_empty());
    assert!(balance.iter().all(|of| of.measured_uj == of.attributed_uj + of.unattributed_uj), "{balance:?}");
}

#[test]
fn a_rate_begins_queries_at_its_pace_whether_or_not_others_have_ended() {
    let llm = LlmStub::start();
    let dir = tempfile::tempdir().unwrap();
    let spec = RunSpec { model: "good-400", pace: Workload::OpenLoop(50.0), questions: 20, repeats: 2 };
    let before_ns = monotonic_ns();
    let (ended, mut rows) = run_questions(&llm, None, &[], &spec, dir.path());
    assert_eq!((ended.progress.finished, rows.len()), (40, 40));
    rows.sort_by_key(|row| row.began_ns);
    // A query never starts early, however late this machine runs.
    let early = |at: usize| rows[at].began_ns < before_ns + at as u64 * 20_000_000;
    assert!(!(0..40).any(early), "{rows:?}");
    let overlap =
        rows.windows(2).filter(|two| two[0].began_ns + two[0].duration_ns > two[1].began_ns).count();
    assert!(overlap > 0, "an answer takes 400 ms, and the next question comes after 20");
}
