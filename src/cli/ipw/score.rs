//! `wattspan ipw score`: a run's answers scored again, by the rules of today or by a judge.
//!
//! Owns the order: rules first, then the judge for what no rule can tell. The model is not asked again; a row whose score changes is
//! written again, and nothing is deleted. What the judge uses is told apart and is in no figure of the run.

use std::collections::{BTreeMap, HashMap};

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::connect::MeterConnector;
use super::super::exit_status::{CliError, FAILURE, OK};
use super::super::quantity::format_energy;
use super::super::{MeterOptions, eprint_message};
use super::server_options::ServerOptions;
use crate::clock::unix_ns;
use crate::ipw::answer_format::AnswerFormat;
use crate::ipw::judge::{self, JudgeVerdict, VerdictCache};
use crate::ipw::metering_thread::MeteringHandle;
use crate::ipw::query::QueryRunner;
use crate::ipw::question::Question;
use crate::ipw::row::{QueryRow, ReplyText};
use crate::ipw::run_dir::{RunDir, for_each_row, for_each_text};

/// Which run, and who judges.
#[derive(Debug, clap::Args)]
pub struct ScoreArgs {
    /// The run's directory
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Let a model judge the answers that no rule can score; the options below say which
    #[arg(long)]
    judge: bool,
    #[command(flatten)]
    server: ServerOptions,
}

/// Scores and tells.
pub fn score(options: &MeterOptions, args: &ScoreArgs) -> Result<u8, CliError> {
    let (mut directory, _, questions) = RunDir::resume(&args.run).map_err(anyhow::Error::from)?;
    let (rows, texts) = latest_rows(&args.run)?;
    let questions: HashMap<&str, &Question> =
        questions.iter().map(|question| (question.id.as_str(), question)).collect();
    let (mut changed, mut judge_queue) = (0, Vec::new());
    for row in rows.into_values().filter(QueryRow::is_answered) {
        let (Some(question), Some(text)) = (questions.get(row.id.as_str()), texts.get(&row.key())) else {
            continue;
        };
        if question.format == AnswerFormat::Judge {
            judge_queue.push((row, *question, text));
            continue;
        }
        let score = question.score_reply(&text.reply).map(|right| f64::from(u8::from(right)));
        changed += usize::from(update_score(&mut directory, row, score)?);
    }
    let to_judge = judge_queue.len();
    let mut status = OK;
    if args.judge && to_judge > 0 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let summary = runtime.block_on(score_with_judge(options, args, &mut directory, judge_queue))?;
        eprint_message(&summary.text());
        changed += summary.changed;
        if summary.judged == 0 {
            status = FAILURE;
        }
    } else if to_judge > 0 {
        eprint_message(&format!("{to_judge} answers need a judge: --judge --url URL --model NAME"));
    }
    eprint_message(&format!("{changed} scores changed"));
    Ok(status)
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

fn update_score(directory: &mut RunDir, mut row: QueryRow, score: Option<f64>) -> Result<bool, CliError> {
    if row.score == score {
        return Ok(false);
    }
    row.score = score;
    directory.rescore(&row).map_err(anyhow::Error::from)?;
    Ok(true)
}

async fn score_with_judge(
    options: &MeterOptions,
    args: &ScoreArgs,
    directory: &mut RunDir,
    judge_queue: Vec<(QueryRow, &Question, &ReplyText)>,
) -> Result<JudgeSummary, CliError> {
    let (request_settings, pool) = args.server.connect().await?;
    let mut verdicts = VerdictCache::open(directory.path())?;
    // The judge is metered where that can be had; a verdict without its energy is a verdict all the same.
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
        let judged_text = judge::verdict_key(&request_settings.model, question, &text.reply);
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
        summary.changed += usize::from(update_score(directory, row, verdict.score)?);
    }
    Ok(summary)
}

/// What a judge did.
#[derive(Debug, Default)]
struct JudgeSummary {
    model: String,
    /// Answers that have its verdict now.
    judged: usize,
    /// Of those, the ones that it was asked about now.
    newly_judged: usize,
    /// It said something, and no verdict could be read in it.
    unparsed: usize,
    /// It said nothing.
    unanswered: usize,
    /// Scores that are other ones now.
    changed: usize,
    /// What it used where that is known; `None`: of no answer.
    energy_uj: Option<u64>,
    /// How many answers it is not known of.
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
            (None, _) => "what it used is unknown, and".to_owned(),
            (Some(used_uj), 0) => format!("it used {} in all, which", format_energy(used_uj, None)),
            (Some(used_uj), some) => {
                format!("it used {} (unknown for {some} answers), which", format_energy(used_uj, None))
            }
        };
        format!(
            "{} judged {} answers, {} of them anew; {} verdicts could not be read, {} answers got none; {used} is in no figure of \
             the run",
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
        assert!(summary.text().contains("what it used is unknown"), "{}", summary.text());
        summary.add_energy(Some(2_000_000));
        assert!(summary.text().contains("it used 2.000 J (unknown for 1 answers)"), "{}", summary.text());
    }
}
