//! Polls the meter for all viewers and distributes events to them.
//!
//! Invariant: memory does not grow with slow viewers. The events of a range are in a ring that all its viewers read; one
//! that falls out of it continues with a message that replaces all.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::broadcast;
use wattspan_client::clock;

use super::live_history::HistoryRange;
use super::live_state::LiveState;
use crate::top::meter_feed::MeterFeed;
use crate::top::poll_thread::PollThread;

/// The time between two polls while there are viewers: that of `wattspan top`.
const VIEWED_INTERVAL: Duration = Duration::from_millis(500);

/// The time between two polls for the history alone.
const UNVIEWED_INTERVAL: Duration = Duration::from_secs(2);

/// Events that a viewer may be late.
const MAX_LATE_EVENTS: usize = 4;

/// The state and the streams of events.
pub struct Hub {
    state: Mutex<LiveState>,
    events: [broadcast::Sender<Bytes>; 3],
    /// Ends the wait of the collector when the first viewer comes.
    wake: Sender<()>,
}

/// The events of one viewer.
pub struct Subscription {
    hub: Arc<Hub>,
    range: HistoryRange,
    events: broadcast::Receiver<Bytes>,
    first: Option<Bytes>,
}

impl Hub {
    /// Polls once, so that an error is reported at the start, and then on a thread of its own.
    pub fn start(mut feed: MeterFeed) -> Result<Arc<Self>, wattspan_client::ClientError> {
        let mut state = LiveState::new(feed.meter_kind(), feed.fallback_notice());
        state.apply(feed.poll()?, clock::unix_ns());
        let (hub, woken) = Hub::of_state(state);
        let collector = Arc::clone(&hub);
        thread::spawn(move || collector.collect(PollThread::start(feed), &woken));
        Ok(hub)
    }

    fn of_state(state: LiveState) -> (Arc<Self>, Receiver<()>) {
        let (wake, woken) = channel();
        let events = HistoryRange::ALL.map(|_| broadcast::channel(MAX_LATE_EVENTS).0);
        (Arc::new(Hub { state: Mutex::new(state), events, wake }), woken)
    }

    fn state(&self) -> MutexGuard<'_, LiveState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The events from now on. The first one replaces all.
    pub fn subscribe(self: &Arc<Self>, range: HistoryRange) -> Subscription {
        let state = self.state();
        let events = self.events[range as usize].subscribe();
        let first = Some(state.full_event(range, clock::unix_ns()).into());
        drop(state);
        // The collector has ended with the process only.
        let _ = self.wake.send(());
        Subscription { hub: Arc::clone(self), range, events, first }
    }

    fn has_viewers(&self) -> bool {
        self.events.iter().any(|events| events.receiver_count() > 0)
    }

    /// Sends the events since the last call to the viewers.
    fn publish(&self, state: &mut LiveState) {
        let viewed = |range: &HistoryRange| self.events[*range as usize].receiver_count() > 0;
        let ranges = HistoryRange::ALL.into_iter().filter(viewed);
        for (range, event) in state.next_events(ranges, clock::unix_ns()) {
            // The last viewer has left meanwhile.
            let _ = self.events[range as usize].send(event.into());
        }
    }

    fn collect(&self, mut polls: PollThread, woken: &Receiver<()>) {
        loop {
            let begun = Instant::now();
            let polled = polls.poll();
            let mut state = self.state();
            match polled {
                Some(Ok(update)) => state.apply(update, clock::unix_ns()),
                Some(Err(reason)) => state.set_unreachable(&reason, clock::unix_ns()),
                None => {}
            }
            self.publish(&mut state);
            drop(state);
            self.wait(begun, woken);
        }
    }

    /// Waits for the next poll, which comes earlier with the first viewer.
    fn wait(&self, begun: Instant, woken: &Receiver<()>) {
        loop {
            let interval = if self.has_viewers() { VIEWED_INTERVAL } else { UNVIEWED_INTERVAL };
            let rest = interval.saturating_sub(begun.elapsed());
            match woken.recv_timeout(rest) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

impl Subscription {
    /// The next event; `None` at the end.
    pub async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        match self.events.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Closed) => None,
            Err(broadcast::error::RecvError::Lagged(_)) => {
                let state = self.hub.state();
                self.events = self.events.resubscribe();
                Some(state.full_event(self.range, clock::unix_ns()).into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::meter_feed::MeterUpdate;
    use crate::top::test_machine::snapshot;

    fn hub() -> Arc<Hub> {
        let mut state = LiveState::new("daemon", None);
        let snapshot = snapshot(&[("package-0", 10, 5)]);
        state.apply(MeterUpdate { snapshot, settled: vec![], complete_since_ns: Some(0) }, clock::unix_ns());
        Hub::of_state(state).0
    }

    fn is_full(event: &Bytes) -> bool {
        event.starts_with(b"data: {\"full\":true")
    }

    fn receive(subscription: &mut Subscription) -> Bytes {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(subscription.next()).unwrap()
    }

    #[test]
    fn a_slow_viewer_loses_events_and_continues_with_the_whole_state() {
        let hub = hub();
        let (mut slow, mut fast) = (hub.subscribe(HistoryRange::Hour), hub.subscribe(HistoryRange::Hour));
        assert!(is_full(&receive(&mut slow)) && is_full(&receive(&mut fast)));
        hub.publish(&mut hub.state());
        assert!(is_full(&receive(&mut fast)), "the totals began");
        for _ in 0..100 {
            hub.publish(&mut hub.state());
            assert!(!is_full(&receive(&mut fast)));
        }
        let events = &hub.events[HistoryRange::Hour as usize];
        assert!(events.len() <= MAX_LATE_EVENTS);
        assert!(is_full(&receive(&mut slow)));
        hub.publish(&mut hub.state());
        assert!(!is_full(&receive(&mut slow)), "only what is new, and nothing of the time before");
        drop((slow, fast));
        assert!(!hub.has_viewers());
    }
}
