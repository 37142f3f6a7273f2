//! Runs of questions inside this process: a stub server, a meter on a machine with known truth, and a directory.
//!
//! Owns the wiring between them; the true energy of the queries comes from the simulated machine.

#![allow(dead_code, reason = "each test and bench uses its own part")]

use std::path::Path;
use std::time::Duration;

use tokio::sync::oneshot;
use wattspan_client::Client;
use wattspan_client::account::Account;
use wattspan_http::connection_pool::{self, build_pool};
use wattspan_ipw::llm_api::{Api, RequestSettings, TokenLimitField};
use wattspan_ipw::metering_thread::MeteringHandle;
use wattspan_ipw::question::{self, Question};
use wattspan_ipw::row::QueryRow;
use wattspan_ipw::run::{RunOutcome, RunSetup, Workload, run_queries};
use wattspan_ipw::run_dir::{FORMAT_VERSION, Manifest, RunDir, for_each_row};
use wattspan_ipw::run_settings::{RunSettings, encode_settings};
use wattspan_ipw::scope::{RunDomain, live_domains};

use super::in_process::{InProcessService, WeightInterval};
use super::llm_stub::LlmStub;

/// The questions of a run and how they are sent.
pub struct RunSpec {
    /// The model, which selects the stub's behavior.
    pub model: &'static str,
    /// How queries follow each other: closed loop or open loop.
    pub pace: Workload,
    pub questions: usize,
    /// Repetitions of each question.
    pub repeats: u32,
}

/// Runs the questions in this process; returns every row.
pub fn run_questions(
    llm: &LlmStub,
    metering: Option<MeteringHandle>,
    domains: &[RunDomain],
    spec: &RunSpec,
    path: &Path,
) -> (RunOutcome, Vec<QueryRow>) {
    let questions: Vec<Question> = question::built_in().into_iter().take(spec.questions).collect();
    let request_settings = RequestSettings {
        base_url: llm.url().parse().unwrap(),
        api: Api::Chat,
        model: spec.model.to_owned(),
        system_prompt: None,
        temperature: 0.0,
        seed: Some(0),
        max_tokens: 512,
        token_limit: TokenLimitField::default(),
        stream: true,
        logprobs: false,
        extra_body: None,
        api_key: None,
        timeout: Duration::from_secs(120),
    };
    let manifest = Manifest {
        version: FORMAT_VERSION,
        fingerprint: question::fingerprint(&questions),
        count: questions.len(),
        repeats: spec.repeats,
        settings: encode_settings(
            &request_settings,
            RunSettings { workload: spec.pace, warm_up: 0, retries: 0 },
        ),
        ..Manifest::default()
    };
    let mut directory = RunDir::create(path, &manifest, &questions).unwrap();
    let setup = RunSetup {
        pool: build_pool(&request_settings.base_url, connection_pool::PoolSettings::default()).unwrap(),
        request_settings,
        metering,
        domains: domains.to_vec(),
        workload: spec.pace,
        warm_up: 0,
        repeats: spec.repeats,
        retries: 0,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (_go_on, stop) = oneshot::channel();
    let ended = runtime.block_on(run_queries(setup, &questions, &mut directory, |_, _| (), stop)).unwrap();
    let mut rows = Vec::new();
    for_each_row(&path.join("rows.jsonl"), |row| rows.push(row)).unwrap();
    (ended, rows)
}

/// Runs `spec` on a machine with known truth; returns the rows, their accounts, and a client for further calls.
pub fn run_metered(
    machine: &InProcessService,
    llm: &LlmStub,
    domains: &[&str],
    spec: &RunSpec,
    path: &Path,
) -> (Vec<QueryRow>, Client) {
    let client = Client::from_stream(machine.connection()).unwrap();
    let (meters, _) = live_domains(&client.info().unwrap());
    assert!(meters.iter().map(|meter| meter.name.as_str()).eq(domains.iter().copied()), "{meters:?}");
    let connection = std::sync::Mutex::new(Some(machine.connection()));
    let connect = move || {
        let connection = connection.lock().unwrap().take();
        connection.map_or(Err(wattspan_client::ClientError::ConnectionClosed), Client::from_stream)
    };
    let (metering, thread) = MeteringHandle::start("truth", Box::new(connect)).unwrap();
    let (ended, rows) = run_questions(llm, Some(metering), &meters, spec, path);
    assert!(!ended.interrupted);
    thread.join().unwrap();
    (rows, client)
}

/// The accounts of all queries of a run, in the order of the rows. A query without energy has an account too.
pub fn fetch_accounts(client: &Client, rows: &[QueryRow]) -> Vec<Account> {
    let all = client.recent_accounts(Some(10_000)).unwrap();
    let of = |row: &QueryRow| {
        let closed_ns = row.began_ns + row.duration_ns;
        let near = |account: &&Account| {
            account.attributes["question"] == row.id
                && account.closed_ns.unwrap().abs_diff(closed_ns) <= account.moved_ns
        };
        all.iter().find(near).unwrap_or_else(|| panic!("no account of {row:?}")).clone()
    };
    rows.iter().map(of).collect()
}

/// The interval in which the account's span was open.
pub fn weight_interval(account: &Account) -> WeightInterval {
    let to_ns = account.closed_ns.expect("a settled span has closed");
    WeightInterval { from_ns: account.opened_ns, to_ns, weight: account.weight }
}
