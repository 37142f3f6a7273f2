//! A store without threads: a simulation takes their steps, at instants of a clock that it sets.

use super::query_thread::PendingQuery;
use super::writer_thread::WriterError;
use super::*;

/// What the threads of a store would run. Dropping it is the end of the process: what is not on disk is lost.
pub(crate) struct SteppedStore {
    work: StoreWork,
    /// Ends the delay of a commit, which would be one of real time.
    urgent: Sender<()>,
}

/// Like [`Store::start`], without threads.
pub(crate) fn start(settings: StoreSettings, clock: Clock) -> (Store, SteppedStore) {
    let (store, work) = Store::prepare(settings, clock, |_| ());
    let urgent = store.senders.as_ref().map(|senders| senders.work.requested.clone()).expect("it is running");
    (store, SteppedStore { work, urgent })
}

impl SteppedStore {
    /// Does all that the threads have to do now.
    pub(crate) fn run(&mut self) {
        let _ = self.urgent.try_send(());
        self.work.writer.step();
        // Their results come in this step, however fast the threads are.
        for (_, thread) in self.work.writer.sums.running.drain(..) {
            thread.join().expect("sums do not panic");
        }
        run_queries(&mut self.work.queries);
    }

    /// Like [`Self::run`] with a disk on which every operation fails.
    pub(crate) fn run_with_failing_disk(&mut self) {
        self.work.writer.attempt(|_| Err(WriterError::Sync(io::Error::other("a simulated failure"))));
        run_queries(&mut self.work.queries);
    }

    /// Ends the threads in order, after the shutdown of the store.
    pub(crate) fn end(self) {
        let Self { work: StoreWork { mut writer, mut queries, queries_alive }, urgent } = self;
        drop(urgent);
        while !writer.step() {}
        run_queries(&mut queries);
        drop((queries, queries_alive));
        writer.end();
    }
}

/// Runs the queries that wait for no commit to their ends.
fn run_queries(queries: &mut QueryThread) {
    queries.running.extend(queries.queries.try_iter().map(PendingQuery::new));
    let mut has_ended = false;
    while queries.running.iter().any(|pending| queries.access.is_ready(pending.appended)) {
        has_ended |= queries.run_turn();
    }
    if has_ended {
        queries.shared.wake();
    }
}
