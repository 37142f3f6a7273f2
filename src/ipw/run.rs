//! A run: every question, at the pace that was asked for, into the run's directory.
//!
//! Owns the pace (so many at once, or so many a second), the warm-up, the order, and what is told meanwhile. Invariant: a
//! query that fails is a row; only a directory that cannot be written ends a run early. Runs on one thread.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::ask::Asking;
use super::metering::Metering;
use super::query::Query;
use super::question::{Format, Question};
use super::row::{Row, Text};
use super::run_dir::{RunDir, Unusable};
use crate::http::Body;
use crate::http::dial::Pool;

/// How queries follow each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// So many are open at once.
    AtOnce(usize),
    /// So many begin each second, whether or not others have ended.
    PerSecond(f64),
}

/// The most queries that are open at once, whatever the rate.
const MOST_AT_ONCE: usize = 4096;

/// What a run is made with.
pub struct Setup {
    /// Connections to the server.
    pub pool: Pool<Body>,
    /// How it is asked.
    pub asking: Asking,
    /// The meter, if there is one.
    pub metering: Option<Metering>,
    /// The run's domains, in their order.
    pub domains: Vec<String>,
    /// How queries follow each other.
    pub pace: Pace,
    /// Questions that are asked first and not counted; other ones than those that are.
    pub warm_up: u32,
    /// How often each question is asked.
    pub repeats: u32,
    /// Further tries after a failure.
    pub retries: u32,
}

/// What has come so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Progress {
    /// Queries of this call: all that are to be made.
    pub of: usize,
    /// Those that ended.
    pub ended: usize,
    /// Of those, failed ones.
    pub failed: usize,
    /// Of those, scored ones.
    pub scored: usize,
    /// The sum of their scores.
    pub right: f64,
    /// Of those, with a known energy.
    pub metered: usize,
    /// Its sum.
    pub energy_uj: u64,
    /// The time those took together.
    pub span_ns: u64,
}

impl Progress {
    fn count(&mut self, row: &Row) {
        self.ended += 1;
        self.failed += usize::from(!row.answered());
        if let Some(score) = row.score {
            self.scored += 1;
            self.right += score;
        }
        if let Some((energy, share_uj)) =
            row.energy.as_ref().and_then(|energy| Some((energy, energy.share_uj?)))
        {
            self.metered += 1;
            self.energy_uj += share_uj;
            self.span_ns += energy.span_ns;
        }
    }
}

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    /// What came.
    pub progress: Progress,
    /// It was interrupted; what was answered is kept.
    pub interrupted: bool,
}

/// Asks every question that the directory has no answer to. `tell` hears of every query that ends; `stop` ends the run early.
///
/// # Errors
/// The directory cannot be written any more; what was written is whole.
pub async fn run(
    setup: Setup,
    questions: &[Question],
    directory: &mut RunDir,
    mut tell: impl FnMut(&Progress, &Row),
    mut stop: oneshot::Receiver<()>,
) -> Result<Ended, Unusable> {
    let setup = Rc::new(setup);
    let todo: Vec<(usize, u32)> = (0..setup.repeats)
        .flat_map(|repeat| (0..questions.len()).map(move |place| (place, repeat)))
        .filter(|(place, repeat)| !directory.is_done(&questions[*place].id, *repeat))
        .collect();
    let mut progress = Progress { of: todo.len(), ..Progress::default() };
    let questions: Rc<[Question]> = questions.into();
    let local = LocalSet::new();
    let whole = local.run_until(async {
        tokio::select! {
            () = warm_up(&setup) => {}
            _ = &mut stop => return Ok::<bool, Unusable>(true),
        }
        let mut open = JoinSet::new();
        let mut todo = todo.into_iter().enumerate();
        let (width, mut beat) = match setup.pace {
            Pace::AtOnce(width) => (width.clamp(1, MOST_AT_ONCE), None),
            Pace::PerSecond(rate) => {
                (MOST_AT_ONCE, Some(interval(Duration::from_secs_f64(1.0 / rate.max(1e-3)))))
            }
        };
        if let Some(beat) = &mut beat {
            beat.set_missed_tick_behavior(MissedTickBehavior::Burst);
        }
        let mut next = todo.next();
        while next.is_some() || !open.is_empty() {
            let may_begin = next.is_some() && open.len() < width;
            let begin = async {
                match &mut beat {
                    Some(beat) => _ = beat.tick().await,
                    None => {}
                }
            };
            tokio::select! {
                biased;
                _ = &mut stop => return Ok(true),
                () = begin, if may_begin => {
                    if let Some((number, (place, repeat))) = next.take() {
                        let (setup, questions) = (Rc::clone(&setup), Rc::clone(&questions));
                        open.spawn_local(async move {
                            one(&setup, &questions[place], repeat, number as u64).await
                        });
                    }
                    next = todo.next();
                }
                Some(ended) = open.join_next() => {
                    // A query that panicked ends the program (panic = abort); one that was cancelled is not there.
                    if let Ok((row, text)) = ended {
                        directory.add(&row, &text)?;
                        progress.count(&row);
                        tell(&progress, &row);
                    }
                }
            }
        }
        Ok(false)
    });
    let interrupted = whole.await?;
    Ok(Ended { progress, interrupted })
}

async fn one(setup: &Setup, question: &Question, repeat: u32, number: u64) -> (Row, Text) {
    let query = Query {
        pool: &setup.pool,
        asking: &setup.asking,
        metering: setup.metering.as_ref(),
        domains: &setup.domains,
        retries: setup.retries,
    };
    query.ask(question, repeat, number).await
}

/// Loads the model and wakes the hardware with prompts that are none of the questions, so that none of those is cached.
async fn warm_up(setup: &Setup) {
    let query = Query {
        pool: &setup.pool,
        asking: &setup.asking,
        metering: None,
        domains: &setup.domains,
        retries: 0,
    };
    for number in 0..setup.warm_up {
        let question = Question {
            id: format!("warm-up {number}"),
            subject: String::new(),
            format: Format::Exact,
            prompt: format!("This is warm-up number {number}. Reply with the word ready."),
            answer: "ready".into(),
            choices: Vec::new(),
        };
        query.ask(&question, 0, u64::from(number)).await;
    }
    if setup.warm_up > 0 && setup.metering.is_some() {
        // So that the meter can tell the machine's rest from the run.
        sleep(Duration::from_millis(500)).await;
    }
}

/// The settings of a run by name, for its manifest.
pub fn settings(asking: &Asking, pace: Pace, warm_up: u32, retries: u32) -> BTreeMap<String, String> {
    let pace = match pace {
        Pace::AtOnce(width) => ("at once".to_owned(), width.to_string()),
        Pace::PerSecond(rate) => ("per second".to_owned(), rate.to_string()),
    };
    let mut settings = BTreeMap::from([
        ("interface".to_owned(), asking.api.name().to_owned()),
        ("temperature".to_owned(), asking.temperature.to_string()),
        ("most tokens".to_owned(), asking.max_tokens.to_string()),
        ("streamed".to_owned(), if asking.stream { "yes" } else { "no" }.to_owned()),
        ("warm-up".to_owned(), warm_up.to_string()),
        ("retries".to_owned(), retries.to_string()),
        pace,
    ]);
    settings.extend(asking.seed.map(|seed| ("seed".to_owned(), seed.to_string())));
    settings.extend(asking.system.clone().map(|system| ("system prompt".to_owned(), system)));
    settings
}
