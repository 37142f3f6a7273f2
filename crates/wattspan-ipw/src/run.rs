//! The run loop: sends all questions at the requested rate and writes the results to the run's directory.
//!
//! Controls the rate (concurrency or queries per second), warm-up, order and progress. Invariant: a failed query is a
//! row, and the row of a query has the energy of all its tries, those of an interrupted run included; only a directory that cannot be written ends a run early; an unsettled account does not delay other queries.
//! Runs on one thread.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, sleep_until};
use wattspan_http::BoxBody;
use wattspan_http::connection_pool::ConnectionPool;

use super::answer_format::AnswerFormat;
use super::llm_api::RequestSettings;
use super::metering_thread::MeteringHandle;
use super::query::QueryRunner;
use super::question::Question;
use super::row::{QueryRow, ReplyText};
use super::run_dir::{RunDir, RunDirError};
use super::scope::RunDomain;

/// How queries follow each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Workload {
    /// Closed loop: this many queries are open at a time.
    ClosedLoop(usize),
    /// Open loop: this many queries begin each second, independent of completions.
    OpenLoop(f64),
}

/// The highest request rate, queries per second.
pub const MAX_QUERIES_PER_SECOND: f64 = 1e5;

/// The maximum number of open queries in open-loop mode.
const MAX_CONCURRENCY: usize = 4096;

/// The maximum number of queries that are open or wait for their accounts.
const MAX_UNSETTLED_QUERIES: usize = 4 * MAX_CONCURRENCY;

/// How long an interrupted run waits for the accounts of answered queries.
const INTERRUPT_GRACE_PERIOD: Duration = Duration::from_secs(3);

pub struct RunSetup {
    /// The HTTP client of the server.
    pub pool: ConnectionPool<BoxBody>,
    pub request_settings: RequestSettings,
    /// The metering thread, if the run is metered.
    pub metering: Option<MeteringHandle>,
    /// The run's domains, in order.
    pub domains: Vec<RunDomain>,
    /// How queries follow each other.
    pub workload: Workload,
    /// Number of uncounted warm-up queries; their prompts are none of the questions.
    pub warm_up: u32,
    /// How often each question is asked.
    pub repeats: u32,
    /// Maximum retries after a failure.
    pub retries: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RunProgress {
    /// Total number of queries of this call.
    pub total: usize,
    pub finished: usize,
    pub failed: usize,
    pub scored: usize,
    pub score_sum: f64,
    /// Queries with a known energy.
    pub metered: usize,
    /// Metered queries for which the daemon gave no energy.
    pub unmetered: usize,
    /// Sum of the known energies.
    pub energy_uj: u64,
    /// Sum of the window energies of the queries.
    pub window_uj: u64,
    /// Sum of the durations of those windows.
    pub window_ns: u64,
}

impl RunProgress {
    fn record(&mut self, row: &QueryRow) {
        self.finished += 1;
        self.failed += usize::from(!row.is_answered());
        self.unmetered += usize::from(row.unmetered.is_some());
        if let Some(score) = row.counted_score() {
            self.scored += 1;
            self.score_sum += score;
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

#[derive(Debug)]
pub struct RunOutcome {
    pub progress: RunProgress,
    /// Whether the run was interrupted; answered queries are kept.
    pub interrupted: bool,
}

/// Runs every question that has no answer in the directory. `on_row` is called after each query; `stop` ends the run
/// early.
///
/// # Errors
/// The directory can no longer be written; lines that were written before are complete.
pub async fn run_queries(
    setup: RunSetup,
    questions: &[Question],
    directory: &mut RunDir,
    mut on_row: impl FnMut(&RunProgress, &QueryRow),
    mut stop: oneshot::Receiver<()>,
) -> Result<RunOutcome, RunDirError> {
    let remaining: Vec<(usize, u32)> = (0..setup.repeats)
        .flat_map(|repeat| (0..questions.len()).map(move |index| (index, repeat)))
        .filter(|(index, repeat)| !directory.is_answered(&questions[*index].id, *repeat))
        .collect();
    let mut progress = RunProgress { total: remaining.len(), ..RunProgress::default() };
    let (cancel, cancelled) = watch::channel(false);
    let local = LocalSet::new();
    let result = local.run_until(async {
        tokio::select! {
            () = warm_up(&setup) => {}
            _ = &mut stop => return Ok(true),
        }
        let mut scheduler = QueryScheduler::new(setup, questions, cancelled);
        let mut remaining = remaining.into_iter().enumerate().peekable();
        let mut deadline = None;
        while remaining.peek().is_some() || !scheduler.open.is_empty() {
            let (may_begin, wait_until) = (remaining.peek().is_some() && scheduler.has_room(), deadline);
            tokio::select! {
                biased;
                _ = &mut stop, if wait_until.is_none() => {
                    remaining = Vec::new().into_iter().enumerate().peekable();
                    deadline = Some(Instant::now() + INTERRUPT_GRACE_PERIOD);
                    let _ = cancel.send(true);
                }
                () = sleep_until(wait_until.unwrap_or_else(Instant::now)), if wait_until.is_some() => break,
                permit = scheduler.pacer.wait(), if may_begin => {
                    if let Some((number, (index, repeat))) = remaining.next() {
                        scheduler.spawn_query(permit, number as u64, index, repeat);
                    }
                }
                Some(ended) = scheduler.open.join_next() => {
                    // A panic aborts the program (panic = abort); a cancelled query has no row.
                    if let Ok(Some((mut row, text))) = ended {
                        row.session = directory.session();
                        row.add_tries(directory.earlier_tries(&row.id, row.repeat));
                        directory.append_row(&row, &text)?;
                        progress.record(&row);
                        on_row(&progress, &row);
                    }
                }
            }
        }
        Ok::<bool, RunDirError>(deadline.is_some())
    });
    let interrupted = result.await?;
    Ok(RunOutcome { progress, interrupted })
}

/// The queries in flight.
struct QueryScheduler {
    setup: Rc<RunSetup>,
    questions: Rc<[Question]>,
    cancelled: watch::Receiver<bool>,
    pacer: Pacer,
    /// Queries that are open or wait for their accounts.
    open: JoinSet<Option<(QueryRow, ReplyText)>>,
}

impl QueryScheduler {
    fn new(setup: RunSetup, questions: &[Question], cancelled: watch::Receiver<bool>) -> Self {
        let pacer = Pacer::new(setup.workload);
        Self { setup: Rc::new(setup), questions: questions.into(), cancelled, pacer, open: JoinSet::new() }
    }

    fn has_room(&self) -> bool {
        self.open.len() < MAX_UNSETTLED_QUERIES
    }

    fn spawn_query(&mut self, permit: OwnedSemaphorePermit, number: u64, index: usize, repeat: u32) {
        let (setup, questions, mut cancelled) =
            (Rc::clone(&self.setup), Rc::clone(&self.questions), self.cancelled.clone());
        self.open.spawn_local(async move {
            let query = query_runner(&setup, setup.metering.as_ref(), setup.retries);
            let answered = tokio::select! {
                answered = query.ask(&questions[index], repeat, number) => answered,
                _ = cancelled.wait_for(|cancelled| *cancelled) => return None,
            };
            drop(permit);
            Some(answered.settle(&setup.domains).await)
        });
    }
}

/// Decides when the next query may begin.
struct Pacer {
    permits: Arc<Semaphore>,
    arrivals: Option<Interval>,
}

impl Pacer {
    fn new(workload: Workload) -> Self {
        let (concurrency, arrivals) = match workload {
            Workload::ClosedLoop(concurrency) => (concurrency.clamp(1, MAX_CONCURRENCY), None),
            Workload::OpenLoop(rate) => {
                let mut arrivals = interval(Duration::from_secs_f64(1.0 / rate.max(1e-3)));
                // After a stall of this process queries catch up, so that the mean rate is the requested one.
                arrivals.set_missed_tick_behavior(MissedTickBehavior::Burst);
                (MAX_CONCURRENCY, Some(arrivals))
            }
        };
        Self { permits: Arc::new(Semaphore::new(concurrency)), arrivals }
    }

    /// Waits until the next query may begin. Cancel-safe.
    async fn wait(&mut self) -> OwnedSemaphorePermit {
        let permit = Arc::clone(&self.permits).acquire_owned().await.expect("the semaphore is never closed");
        if let Some(arrivals) = &mut self.arrivals {
            arrivals.tick().await;
        }
        permit
    }
}

fn query_runner<'a>(
    setup: &'a RunSetup,
    metering: Option<&'a MeteringHandle>,
    retries: u32,
) -> QueryRunner<'a> {
    QueryRunner {
        pool: &setup.pool,
        request_settings: &setup.request_settings,
        metering,
        domains: &setup.domains,
        retries,
    }
}

/// Loads the model and warms up the hardware with prompts that are none of the questions, so that no question is
/// cached.
async fn warm_up(setup: &RunSetup) {
    let query = query_runner(setup, None, 0);
    for number in 0..setup.warm_up {
        let question = Question {
            id: format!("warm-up {number}"),
            subject: String::new(),
            format: AnswerFormat::Exact,
            prompt: format!("This is warm-up number {number}. Reply with the word ready."),
            answer: "ready".into(),
            choices: Vec::new(),
        };
        query.ask_and_settle(&question, 0, u64::from(number)).await;
    }
    if setup.warm_up > 0 && setup.metering.is_some() {
        // Idle time between warm-up and run lets the daemon measure the idle baseline.
        sleep(Duration::from_millis(500)).await;
    }
}
