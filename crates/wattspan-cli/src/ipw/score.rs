//! `wattspan ipw score`: rescores a run's answers by the current rules, by a judge model or by a command.
//!
//! Rules come first; the judge scores answers that no rule covers. The model is not queried again. A row whose score
//! changes is appended again, and nothing is deleted. Scores of a command are replaced by those of another command, and by
//! rules and judges only on demand. The judge's energy is reported separately from the run's figures.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use wattspan_client::clock::unix_ns;
use wattspan_ipw::answer_format::AnswerFormat;
use wattspan_ipw::external_scorer::{ScorerOutcome, ScorerRequest, score_answers};
use wattspan_ipw::judge::{self, JudgeVerdict, VerdictCache};
use wattspan_ipw::llm_api::MAX_TIMEOUT_S;
use wattspan_ipw::metering_thread::MeteringHandle;
use wattspan_ipw::query::QueryRunner;
use wattspan_ipw::question::Question;
use wattspan_ipw::row::{QueryRow, ReplyText};
use wattspan_ipw::run_dir::{RunDir, RunDirError, for_each_row, for_each_text};

use super::super::connect::{MeterConnector, MeterOptions};
use super::super::exit_status::{CliError, FAILURE, OK};
use super::super::output::eprint_message;
use super::super::quantity::format_energy;
use super::super::terminal::printable;
use super::server_options::{DEFAULT_JUDGE_MAX_TOKENS, ServerOptions};

/// Arguments of `wattspan ipw score`.
#[derive(Debug, clap::Args)]
pub struct ScoreArgs {
    /// Run directory
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Use a judge model, selected by the options below, for answers that no rule can score
    #[arg(long)]
    judge: bool,
    /// Score every answer with a command instead: JSON lines with id, repeat, format, prompt, answer, choices and reply in,
    /// lines with id, repeat and score (0 to 1, true, false, null) out
    #[arg(long, value_name = "COMMAND", conflicts_with = "judge")]
    with: Option<String>,
    /// Replace the scores that a command gave, too
    #[arg(long, conflicts_with = "with")]
    overwrite: bool,
    /// Longest time between two lines of that command, in seconds
    #[arg(long, value_name = "S", default_value_t = 120, requires = "with", value_parser = clap::value_parser!(u64).range(1..=MAX_TIMEOUT_S))]
    with_timeout: u64,
    #[command(flatten)]
    server: ServerOptions,
}

/// Runs `wattspan ipw score`. What it says to have changed is on disk.
pub fn score(options: &MeterOptions, args: &ScoreArgs) -> Result<u8, CliError> {
    let (mut directory, _, questions) = RunDir::resume(&args.run).map_err(anyhow::Error::from)?;
    let (rows, texts) = latest_rows(&args.run)?;
    let questions: HashMap<&str, &Question> =
        questions.iter().map(|question| (question.id.as_str(), question)).collect();
    let (message, status) = match &args.with {
        Some(command) => {
            let timeout = Duration::from_secs(args.with_timeout);
            score_with_command(command, timeout, &mut directory, rows, &questions, &texts)?
        }
        None => score_answered(options, args, &mut directory, answered(rows, &questions, &texts))?,
    };
    directory.finish().map_err(|error| CliError::new(FAILURE, error))?;
    eprint_message(&message);
    Ok(status)
}

/// Scores answers by rule and, if requested, with a judge. Returns what has changed, and the exit status.
fn score_answered(
    options: &MeterOptions,
    args: &ScoreArgs,
    directory: &mut RunDir,
    answers: Vec<(QueryRow, &Question, &ReplyText)>,
) -> Result<(String, u8), CliError> {
    // A cut-off answer is wrong, whatever a judge would say of its text.
    let (judge_queue, by_rule): (Vec<_>, Vec<_>) = answers
        .into_iter()
        .partition(|(row, question, _)| question.format == AnswerFormat::Judge && !row.is_cut_off());
    if !args.overwrite {
        let replaced = by_rule.iter().chain(judge_queue.iter().filter(|_| args.judge));
        check_scores_of_commands(replaced.filter_map(|(row, ..)| row.scored_by.as_deref()))?;
    }
    let mut changed = 0;
    for (row, question, text) in &by_rule {
        let score = question.score_reply(&text.reply).map(|right| f64::from(u8::from(right)));
        changed += usize::from(update_score(directory, row, score, None).map_err(anyhow::Error::from)?);
    }
    let to_judge = judge_queue.len();
    let mut status = OK;
    if args.judge && to_judge > 0 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let summary = runtime.block_on(score_with_judge(options, args, directory, judge_queue))?;
        eprint_message(&summary.text());
        changed += summary.changed;
        if summary.judged == 0 {
            status = FAILURE;
        }
    } else if to_judge > 0 {
        eprint_message(&format!("{to_judge} answers need a judge: --judge --url URL --model NAME"));
    }
    Ok((format!("{changed} scores changed"), status))
}

/// Scores every answer of a run with an external command. A score is stored as soon as it is read. Returns what has changed, and
/// the exit status.
fn score_with_command(
    command: &str,
    timeout: Duration,
    directory: &mut RunDir,
    rows: Rows,
    questions: &HashMap<&str, &Question>,
    texts: &Texts,
) -> Result<(String, u8), CliError> {
    let answered = answered(rows, questions, texts);
    let requests: Vec<ScorerRequest<'_>> = answered
        .iter()
        .map(|(row, question, text)| ScorerRequest {
            id: &question.id,
            repeat: row.repeat,
            subject: &question.subject,
            format: question.format,
            prompt: &question.prompt,
            answer: &question.answer,
            choices: &question.choices,
            reply: &text.reply,
        })
        .collect();
    let mut changed = 0;
    let outcome = score_answers(command, &requests, timeout, |index, score| {
        changed += usize::from(update_score(directory, &answered[index].0, Some(score), Some(command))?);
        Ok(())
    })
    .map_err(anyhow::Error::from)?;
    for problem in &outcome.problems {
        eprint_message(problem);
    }
    let ScorerOutcome { scored, unscored, .. } = outcome;
    let status = if outcome.problems.is_empty() { OK } else { FAILURE };
    let message = format!(
        "{scored} of {} answers scored, {unscored} left without a score; {changed} scores changed",
        requests.len()
    );
    Ok((message, status))
}

/// Returns the answered queries whose question and reply are known.
fn answered<'a>(
    rows: Rows,
    questions: &HashMap<&str, &'a Question>,
    texts: &'a Texts,
) -> Vec<(QueryRow, &'a Question, &'a ReplyText)> {
    let answered = rows.into_values().filter(QueryRow::is_answered);
    answered
        .filter_map(|row| {
            let text = texts.get(&row.key()).filter(|text| text.is_of(&row))?;
            let question = *questions.get(row.id.as_str())?;
            Some((row, question, text))
        })
        .collect()
}

/// Fails if some of the scores to replace are those of a command, named here for each of them.
fn check_scores_of_commands<'a>(mut commands: impl Iterator<Item = &'a str>) -> Result<(), CliError> {
    let Some(first) = commands.next() else { return Ok(()) };
    let count = 1 + commands.count();
    let message = format!(
        "{count} answers have scores of the command \"{}\", which this would replace, and nothing was scored: score them \
         with the command again (--with), or replace its scores (--overwrite)",
        printable(first)
    );
    Err(CliError::new(FAILURE, message))
}

type Rows = BTreeMap<(String, u32), QueryRow>;
type Texts = HashMap<(String, u32), ReplyText>;

/// The last row and text of each query.
fn latest_rows(run: &Path) -> Result<(Rows, Texts), CliError> {
    let (mut rows, mut texts) = (Rows::new(), Texts::new());
    for_each_row(&run.join("rows.jsonl"), |row| _ = rows.insert(row.key(), row))
        .map_err(anyhow::Error::from)?;
    for_each_text(run, |text| _ = texts.insert((text.id.clone(), text.repeat), text))
        .map_err(anyhow::Error::from)?;
    Ok((rows, texts))
}

/// Stores the score that counts for the row with this score of its text, and the command that gave it; returns whether the
/// score changed.
fn update_score(
    directory: &mut RunDir,
    row: &QueryRow,
    score: Option<f64>,
    command: Option<&str>,
) -> Result<bool, RunDirError> {
    let mut rescored = QueryRow { score, ..row.clone() };
    rescored.score = rescored.counted_score();
    rescored.scored_by = command.filter(|_| !row.is_cut_off()).map(str::to_owned);
    if rescored != *row {
        directory.rescore(&rescored)?;
    }
    Ok(rescored.score != row.score)
}

async fn score_with_judge(
    options: &MeterOptions,
    args: &ScoreArgs,
    directory: &mut RunDir,
    judge_queue: Vec<(QueryRow, &Question, &ReplyText)>,
) -> Result<JudgeSummary, CliError> {
    let mut server = args.server.clone();
    server.request.max_tokens.get_or_insert(DEFAULT_JUDGE_MAX_TOKENS);
    let (request_settings, pool) = server.connect().await?;
    // With other extra fields (reasoning effort, for example) it is another judge.
    let judge_name = match &request_settings.extra_body {
        Some(extra) => format!("{} {extra}", request_settings.model),
        None => request_settings.model.clone(),
    };
    let mut verdicts = VerdictCache::open(directory.path())?;
    // Metering the judge is optional: a verdict is valid without its energy.
    let metering = MeterConnector::open(options).ok().and_then(|(connector, _)| {
        let connector = Arc::new(connector);
        let prefix = format!("judge-{}-{}", std::process::id(), unix_ns() % 1_000_000_000);
        Some(MeteringHandle::start(&prefix, Box::new(move || connector.connect())).ok()?.0)
    });
    let query = QueryRunner {
        pool: &pool,
        request_settings: &request_settings,
        metering: metering.as_ref(),
        domains: &[],
        retries: 2,
    };
    let mut summary = JudgeSummary { model: request_settings.model.clone(), ..JudgeSummary::default() };
    for (number, (row, question, text)) in judge_queue.into_iter().enumerate() {
        let judged_text = judge::verdict_key(&judge_name, question, &text.reply);
        let verdict = match verdicts.get(&judged_text) {
            Some(verdict) => verdict.clone(),
            None => {
                let judge_question =
                    Question { prompt: judge::render_prompt(question, &text.reply), ..question.clone() };
                let (answer, judge_text) =
                    query.ask_and_settle(&judge_question, row.repeat, number as u64).await;
                let energy_uj = answer.energy.and_then(|energy| energy.share_uj);
                if let Some(error) = answer.error {
                    eprint_message(&format!("{}: the judge gave no answer: {error}", row.id));
                    summary.unanswered += 1;
                    summary.add_energy(energy_uj);
                    continue;
                }
                let score = judge::parse_verdict(&judge_text.reply, answer.finish.as_deref());
                summary.newly_judged += usize::from(score.is_some());
                let verdict = JudgeVerdict { on: judged_text, score, said: judge_text.reply, energy_uj };
                verdicts.insert(verdict.clone())?;
                verdict
            }
        };
        summary.add_energy(verdict.energy_uj);
        match verdict.score {
            Some(_) => summary.judged += 1,
            None => summary.unparsed += 1,
        }
        summary.changed +=
            usize::from(update_score(directory, &row, verdict.score, None).map_err(anyhow::Error::from)?);
    }
    Ok(summary)
}

/// Counts of a judge's verdicts, and its energy.
#[derive(Debug, Default)]
struct JudgeSummary {
    model: String,
    /// Answers with a verdict, cached ones included.
    judged: usize,
    /// Answers judged in this call.
    newly_judged: usize,
    /// Replies without a recognizable verdict.
    unparsed: usize,
    /// Requests that failed.
    unanswered: usize,
    /// Scores that changed.
    changed: usize,
    /// The known energy; `None` if it is known for no answer.
    energy_uj: Option<u64>,
    /// Answers whose judging energy is unknown.
    without_energy: usize,
}

impl JudgeSummary {
    fn add_energy(&mut self, energy_uj: Option<u64>) {
        match energy_uj {
            Some(more) => self.energy_uj = Some(self.energy_uj.unwrap_or(0).saturating_add(more)),
            None => self.without_energy += 1,
        }
    }

    fn text(&self) -> String {
        let used = match (self.energy_uj, self.without_energy) {
            (None, _) => "its energy is unknown and".to_owned(),
            (Some(used_uj), 0) => format!("it used {} in total, which", format_energy(used_uj, None)),
            (Some(used_uj), some) => {
                format!("it used {} (unknown for {some} answers), which", format_energy(used_uj, None))
            }
        };
        format!(
            "{} judged {} answers, {} of them now; {} verdicts could not be parsed, {} requests failed; {used} is excluded from \
             the run's figures",
            self.model, self.judged, self.newly_judged, self.unparsed, self.unanswered
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_energy_is_not_zero() {
        let mut summary = JudgeSummary { model: "big".into(), ..JudgeSummary::default() };
        summary.add_energy(None);
        assert!(summary.text().contains("its energy is unknown"), "{}", summary.text());
        summary.add_energy(Some(2_000_000));
        assert!(summary.text().contains("it used 2.000 J (unknown for 1 answers)"), "{}", summary.text());
    }
}
