//! `wattspan ipw import --inspect` and `--lm-eval`: imports an evaluation as a run.
//!
//! A log of inspect-ai has the energies; those of lm-evaluation-harness are the accounts of the proxy's requests, which
//! the daemon has.

use std::path::{Path, PathBuf};

use wattspan_client::account::Account;
use wattspan_client::protocol::{Access, ListSpans};
use wattspan_ipw::evaluator::account_join::{join_accounts, may_belong};
use wattspan_ipw::evaluator::evaluation::Evaluation;
use wattspan_ipw::evaluator::import::import_evaluation;
use wattspan_ipw::evaluator::inspect_log::read_inspect_log;
use wattspan_ipw::evaluator::lm_eval_results::{LmEvalRun, read_lm_eval_results};

use super::super::account_pages::{AccountPage, AccountPages};
use super::super::connect::{MeterConnector, MeterOptions, ensure_access};
use super::super::exit_status::{CliError, OK};
use super::super::output::{self, eprint_message};
use super::super::terminal::printable;
use super::prepare::domain_assumptions;

/// The accounts of one request to the daemon.
const PAGE_ACCOUNTS: usize = 256;

/// Which evaluation is imported.
#[derive(Debug, clap::Args)]
pub struct EvaluatorOptions {
    /// Log of inspect-ai (.eval or .json) that wattspan.inspect_ai measured
    #[arg(long, value_name = "LOG", conflicts_with_all = ["source", "lm_eval", "model"])]
    inspect: Option<PathBuf>,
    /// Results of lm-evaluation-harness (--output_path, --log_samples) through `wattspan proxy --prompt-hash`
    #[arg(long, value_name = "DIRECTORY", conflicts_with_all = ["source", "model"])]
    lm_eval: Option<PathBuf>,
    /// Score that counts: a scorer of inspect-ai, or METRIC,FILTER of lm-evaluation-harness [default: the first]
    #[arg(long, value_name = "NAME", conflicts_with = "source")]
    scorer: Option<String>,
}

/// Imports the evaluation that the options name.
pub fn import_evaluator(
    options: &MeterOptions,
    args: &EvaluatorOptions,
    label: Option<&str>,
    out: &Path,
) -> Result<u8, CliError> {
    let scorer = args.scorer.as_deref();
    let (source, evaluation) = match (&args.inspect, &args.lm_eval) {
        (Some(log), _) => (log, read_inspect_log(log, scorer).map_err(anyhow::Error::from)?),
        (None, Some(directory)) => {
            let run = read_lm_eval_results(directory, scorer).map_err(anyhow::Error::from)?;
            (directory, join_with_daemon(options, run)?)
        }
        // clap requires one of the two where the positional argument is absent.
        (None, None) => return Err(anyhow::anyhow!("name what to import").into()),
    };
    let findings = import_evaluation(source, evaluation, label, out).map_err(anyhow::Error::from)?;
    if options.json {
        output::print_json_pretty(&findings)?;
        return Ok(OK);
    }
    let heading = format!(
        "{} samples of {} by {} in {}",
        findings.samples,
        findings.task,
        findings.model,
        out.display()
    );
    output::print_text(&format!("{}\n", printable(&heading)))?;
    for sentence in findings.sentences() {
        output::print_text(&format!("  {}\n", printable(&sentence)))?;
    }
    eprint_message(&format!("show the results: wattspan ipw report {}", out.display()));
    Ok(OK)
}

/// Adds the energies of the evaluation's requests, which the daemon has.
fn join_with_daemon(options: &MeterOptions, run: LmEvalRun) -> Result<Evaluation, CliError> {
    let LmEvalRun { mut evaluation, window_unix_ns } = run;
    let client = MeterConnector::connect_daemon(options)?;
    let info = client.info()?;
    ensure_access(&info, Access::Span)?;
    let request = ListSpans {
        since_unix_ns: Some(i64::try_from(window_unix_ns.0).unwrap_or(i64::MAX)),
        ..ListSpans::default()
    };
    let mut pages = AccountPages::new(&client, request);
    let mut accounts: Vec<Account> = Vec::new();
    while let Some(page) = pages.fetch(PAGE_ACCOUNTS)? {
        match page {
            AccountPage::Accounts(found) => {
                accounts.extend(found.into_iter().filter(|it| may_belong(it, &evaluation, window_unix_ns)));
            }
            AccountPage::Damaged(reason) => {
                evaluation.remarks.push(format!("accounts are missing in the daemon's store: {reason}"));
            }
        }
    }
    if accounts.is_empty() {
        evaluation.remarks.push(
            "no account of that time has a prompt's hash and this model: evaluate through wattspan proxy --prompt-hash"
                .into(),
        );
    }
    join_accounts(&mut evaluation, accounts, &info);
    evaluation.assumptions = Some(domain_assumptions(&info));
    Ok(evaluation)
}
