//! A run: every question, at the pace that was asked for, into the run's directory.
//!
//! Owns the pace (so many at once, or so many a second), the warm-up, the order, and what is told meanwhile. Invariant: a
//! query that fails is a row; only a directory that cannot be written ends a run early; a query whose account has not
//! settled yet keeps no other from beginning. Runs on one thread.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, sleep_until};

use super::ask::Asking;
use super::metering::Metering;
use super::query::Query;
use super::question::{Format, Question};
use super::row::{Row, Text};
use super::run_dir::{RunDir, Unusable};
use super::scope::Meter;
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

/// The most queries that may begin each second.
pub const MOST_A_SECOND: f64 = 1e5;

/// The most queries that are open at once, whatever the rate.
const MOST_AT_ONCE: usize = 4096;

/// The most queries that are open or wait for their accounts.
const MOST_UNSETTLED: usize = 4 * MOST_AT_ONCE;

/// How long an interrupted run waits for the accounts of queries that were answered.
const LAST_ACCOUNTS: Duration = Duration::from_secs(3);

/// What a run is made with.
pub struct Setup {
    /// Connections to the server.
    pub pool: Pool<Body>,
    /// How it is asked.
    pub asking: Asking,
    /// The meter, if there is one.
    pub metering: Option<Metering>,
    /// The run's domains, in their order.
    pub domains: Vec<Meter>,
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
    /// Of those, the ones to which a meter that was asked gave none.
    pub unmetered: usize,
    /// Its sum.
    pub energy_uj: u64,
    /// What the machine used while each was open, added up,
    pub window_uj: u64,
    /// and the time those took together.
    pub window_ns: u64,
}

impl Progress {
    fn count(&mut self, row: &Row) {
        self.ended += 1;
        self.failed += usize::from(!row.answered());
        self.unmetered += usize::from(row.unmetered.is_some());
        if let Some(score) = row.score {
            self.scored += 1;
            self.right += score;
        }
        if let Some((energy, share_uj)) =
            row.energy.as_ref().and_then(|energy| Some((energy, energy.share_uj?)))
        {
            self.metered += 1;
            self.energy_uj += share_uj;
            if let Some(window_uj) = energy.window_uj {
                self.window_uj += window_uj;
                self.window_ns += energy.span_ns;
            }
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
    let todo: Vec<(usize, u32)> = (0..setup.repeats)
        .flat_map(|repeat| (0..questions.len()).map(move |place| (place, repeat)))
        .filter(|(place, repeat)| !directory.is_done(&questions[*place].id, *repeat))
        .collect();
    let mut progress = Progress { of: todo.len(), ..Progress::default() };
    let (halt, halted) = watch::channel(false);
    let local = LocalSet::new();
    let whole = local.run_until(async {
        tokio::select! {
            () = warm_up(&setup) => {}
            _ = &mut stop => return Ok(true),
        }
        let mut course = Course::new(setup, questions, halted);
        let mut todo = todo.into_iter().enumerate().peekable();
        let mut give_up = None;
        while todo.peek().is_some() || !course.open.is_empty() {
            let (may_begin, wait_until) = (todo.peek().is_some() && course.has_room(), give_up);
            tokio::select! {
                biased;
                _ = &mut stop, if wait_until.is_none() => {
                    todo = Vec::new().into_iter().enumerate().peekable();
                    give_up = Some(Instant::now() + LAST_ACCOUNTS);
                    let _ = halt.send(true);
                }
                () = sleep_until(wait_until.unwrap_or_else(Instant::now)), if wait_until.is_some() => break,
                slot = course.turn.next(), if may_begin => {
                    if let Some((number, (place, repeat))) = todo.next() {
                        course.begin(slot, number as u64, place, repeat);
                    }
                }
                Some(ended) = course.open.join_next() => {
                    // A query that panicked ends the program (panic = abort); one that was interrupted has no row.
                    if let Ok(Some((row, text))) = ended {
                        directory.add(&row, &text)?;
                        progress.count(&row);
                        tell(&progress, &row);
                    }
                }
            }
        }
        Ok::<bool, Unusable>(give_up.is_some())
    });
    let interrupted = whole.await?;
    Ok(Ended { progress, interrupted })
}

/// Queries under way.
struct Course {
    setup: Rc<Setup>,
    questions: Rc<[Question]>,
    halted: watch::Receiver<bool>,
    turn: Turn,
    /// Those that are open or wait for their accounts.
    open: JoinSet<Option<(Row, Text)>>,
}

impl Course {
    fn new(setup: Setup, questions: &[Question], halted: watch::Receiver<bool>) -> Self {
        let turn = Turn::of(setup.pace);
        Self { setup: Rc::new(setup), questions: questions.into(), halted, turn, open: JoinSet::new() }
    }

    fn has_room(&self) -> bool {
        self.open.len() < MOST_UNSETTLED
    }

    fn begin(&mut self, slot: OwnedSemaphorePermit, number: u64, place: usize, repeat: u32) {
        let (setup, questions, mut halted) =
            (Rc::clone(&self.setup), Rc::clone(&self.questions), self.halted.clone());
        self.open.spawn_local(async move {
            let query = query(&setup, setup.metering.as_ref(), setup.retries);
            let answered = tokio::select! {
                answered = query.answer(&questions[place], repeat, number) => answered,
                _ = halted.wait_for(|halted| *halted) => return None,
            };
            drop(slot);
            Some(answered.settle(&setup.domains).await)
        });
    }
}

/// Who may begin when.
struct Turn {
    slots: Arc<Semaphore>,
    beat: Option<Interval>,
}

impl Turn {
    fn of(pace: Pace) -> Self {
        let (width, beat) = match pace {
            Pace::AtOnce(width) => (width.clamp(1, MOST_AT_ONCE), None),
            Pace::PerSecond(rate) => {
                let mut beat = interval(Duration::from_secs_f64(1.0 / rate.max(1e-3)));
                // A stall of this program is caught up with, so that the mean rate is the one that was asked for.
                beat.set_missed_tick_behavior(MissedTickBehavior::Burst);
                (MOST_AT_ONCE, Some(beat))
            }
        };
        Self { slots: Arc::new(Semaphore::new(width)), beat }
    }

    /// Waits until the next query may begin; may be given up at any time.
    async fn next(&mut self) -> OwnedSemaphorePermit {
        let slot = Arc::clone(&self.slots).acquire_owned().await.expect("nobody closes it");
        if let Some(beat) = &mut self.beat {
            beat.tick().await;
        }
        slot
    }
}

fn query<'a>(setup: &'a Setup, metering: Option<&'a Metering>, retries: u32) -> Query<'a> {
    Query { pool: &setup.pool, asking: &setup.asking, metering, domains: &setup.domains, retries }
}

/// Loads the model and wakes the hardware with prompts that are none of the questions, so that none of those is cached.
async fn warm_up(setup: &Setup) {
    let query = query(setup, None, 0);
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
