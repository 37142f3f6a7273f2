//! `wattspan ipw score`: a run's answers scored again, by the rules of today or by a judge.
//!
//! Owns the order: rules first, then the judge for what no rule can tell. The model is not asked again; a row whose score changes is
//! written again, and nothing is deleted. What the judge uses is told apart and is in no figure of the run.

use std::collections::{BTreeMap, HashMap};

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::ending::{FAILURE, OK, Trouble};
use super::super::quantity::energy;
use super::super::reach::Reach;
use super::super::{Meter, say};
use super::server::Server;
use crate::clock::unix_ns;
use crate::ipw::extract;
use crate::ipw::judge::{self, Verdict, Verdicts};
use crate::ipw::metering::Metering;
use crate::ipw::query::Query;
use crate::ipw::question::{Format, Question};
use crate::ipw::row::{Row, Text};
use crate::ipw::run_dir::{RunDir, each_row, each_text};

/// Which run, and who judges.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The run's directory
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Let a model judge the answers that no rule can score; the options below say which
    #[arg(long)]
    judge: bool,
    #[command(flatten)]
    server: Server,
}

/// Scores and tells.
pub fn score(meter: &Meter, asked: &Arguments) -> Result<u8, Trouble> {
    let (mut directory, _, questions) = RunDir::resume(&asked.run).map_err(anyhow::Error::from)?;
    let (rows, texts) = last_words(&asked.run)?;
    let questions: HashMap<&str, &Question> =
        questions.iter().map(|question| (question.id.as_str(), question)).collect();
    let (mut changed, mut left) = (0, Vec::new());
    for row in rows.into_values().filter(Row::answered) {
        let (Some(question), Some(text)) = (questions.get(row.id.as_str()), texts.get(&row.key())) else {
            continue;
        };
        if question.format == Format::Judge {
            left.push((row, *question, text));
            continue;
        }
        let score = extract::score(question, &text.reply).map(|right| f64::from(u8::from(right)));
        changed += usize::from(rescored(&mut directory, row, score)?);
    }
    let judged = left.len();
    let mut status = OK;
    if asked.judge && judged > 0 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let told = runtime.block_on(by_judge(meter, asked, &mut directory, left))?;
        say(&told.words());
        changed += told.changed;
        if told.judged == 0 {
            status = FAILURE;
        }
    } else if judged > 0 {
        say(&format!("{judged} answers need a judge: --judge --url URL --model NAME"));
    }
    say(&format!("{changed} scores changed"));
    Ok(status)
}

type Rows = BTreeMap<(String, u32), Row>;
type Texts = HashMap<(String, u32), Text>;

/// The last row and text of each query.
fn last_words(run: &Path) -> Result<(Rows, Texts), Trouble> {
    let (mut rows, mut texts) = (Rows::new(), Texts::new());
    each_row(&run.join("rows.jsonl"), |row| _ = rows.insert(row.key(), row)).map_err(anyhow::Error::from)?;
    each_text(run, |text| _ = texts.insert((text.id.clone(), text.repeat), text))
        .map_err(anyhow::Error::from)?;
    Ok((rows, texts))
}

fn rescored(directory: &mut RunDir, mut row: Row, score: Option<f64>) -> Result<bool, Trouble> {
    if row.score == score {
        return Ok(false);
    }
    row.score = score;
    directory.rescore(&row).map_err(anyhow::Error::from)?;
    Ok(true)
}

async fn by_judge(
    meter: &Meter,
    asked: &Arguments,
    directory: &mut RunDir,
    left: Vec<(Row, &Question, &Text)>,
) -> Result<Judged, Trouble> {
    let (asking, pool) = asked.server.reach().await?;
    let mut verdicts = Verdicts::open(directory.path())?;
    // The judge is metered where that can be had; a verdict without its energy is a verdict all the same.
    let metering = Reach::of(meter).ok().and_then(|(reach, _)| {
        let reach = Arc::new(reach);
        let prefix = format!("judge-{}-{}", std::process::id(), unix_ns() % 1_000_000_000);
        Some(Metering::start(&prefix, Box::new(move || reach.again())).ok()?.0)
    });
    let query = Query { pool: &pool, asking: &asking, metering: metering.as_ref(), domains: &[], retries: 2 };
    let mut told = Judged { judge: asking.model.clone(), ..Judged::default() };
    for (number, (row, question, text)) in left.into_iter().enumerate() {
        let on = judge::on(&asking.model, question, &text.reply);
        let verdict = match verdicts.known(&on) {
            Some(verdict) => verdict.clone(),
            None => {
                let put = Question { prompt: judge::prompt(question, &text.reply), ..question.clone() };
                let (answer, said) = query.ask(&put, row.repeat, number as u64).await;
                let energy_uj = answer.energy.and_then(|energy| energy.share_uj);
                if let Some(error) = answer.error {
                    say(&format!("{}: the judge gave no answer: {error}", row.id));
                    told.unanswered += 1;
                    told.used(energy_uj);
                    continue;
                }
                let score = judge::read(&said.reply, answer.finish.as_deref());
                told.new += usize::from(score.is_some());
                let verdict = Verdict { on, score, said: said.reply, energy_uj };
                verdicts.keep(verdict.clone())?;
                verdict
            }
        };
        told.used(verdict.energy_uj);
        match verdict.score {
            Some(_) => told.judged += 1,
            None => told.unread += 1,
        }
        told.changed += usize::from(rescored(directory, row, verdict.score)?);
    }
    Ok(told)
}

/// What a judge did.
#[derive(Debug, Default)]
struct Judged {
    judge: String,
    /// Answers that have its verdict now.
    judged: usize,
    /// Of those, the ones that it was asked about now.
    new: usize,
    /// It said something, and no verdict could be read in it.
    unread: usize,
    /// It said nothing.
    unanswered: usize,
    /// Scores that are other ones now.
    changed: usize,
    /// What it used where that is known; `None`: of no answer.
    used_uj: Option<u64>,
    /// How many answers it is not known of.
    unknown: usize,
}

impl Judged {
    fn used(&mut self, energy_uj: Option<u64>) {
        match energy_uj {
            Some(more) => self.used_uj = Some(self.used_uj.unwrap_or(0).saturating_add(more)),
            None => self.unknown += 1,
        }
    }

    fn words(&self) -> String {
        let used = match (self.used_uj, self.unknown) {
            (None, _) => "what it used is unknown, and".to_owned(),
            (Some(used_uj), 0) => format!("it used {} in all, which", energy(used_uj, None)),
            (Some(used_uj), some) => {
                format!("it used {} (unknown for {some} answers), which", energy(used_uj, None))
            }
        };
        format!(
            "{} judged {} answers, {} of them anew; {} verdicts could not be read, {} answers got none; {used} is in no figure of \
             the run",
            self.judge, self.judged, self.new, self.unread, self.unanswered
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_energy_that_is_not_known_is_not_nothing() {
        let mut told = Judged { judge: "big".into(), ..Judged::default() };
        told.used(None);
        assert!(told.words().contains("what it used is unknown"), "{}", told.words());
        told.used(Some(2_000_000));
        assert!(told.words().contains("it used 2.000 J (unknown for 1 answers)"), "{}", told.words());
    }
}
