//! Calls that another server of this daemon (D-Bus) forwards, with the credentials that its transport states.
//!
//! Owns the queue between the two. A call is passed on as a value. Where the service is free, the thread of the caller
//! performs it at once, so that no other thread has to wake up; else the server's thread does (`event_loop.rs`). The queue keeps the order of the calls of a client.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use wattspan_client::protocol::{MethodError, MethodName};
use wattspan_system::unix_socket::PeerCredentials;

use crate::service::{MethodResult, Request};

/// The function that receives the reply to a call. It must not block; dropped without a call, there is no reply.
pub type ReplySender = Box<dyn FnOnce(MethodResult) + Send>;

/// A call of a method.
pub struct ForwardedCall {
    /// What is called, also where the parameters are wrong.
    pub method: MethodName,
    /// The method with its parameters, or what is wrong with them; access is checked first.
    pub request: Result<Request, MethodError>,
    /// The caller expects no reply.
    pub oneway: bool,
    /// Receives the reply, unless the call is oneway.
    pub reply: ReplySender,
}

impl fmt::Debug for ForwardedCall {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("ForwardedCall").field("request", &self.request).finish_non_exhaustive()
    }
}

/// The number of a client; never reused.
pub type ForwardedClientId = u64;

/// What happened to a client.
#[derive(Debug)]
pub enum ForwardedEvent {
    /// The client has connected.
    Connected {
        /// As the transport states them.
        credentials: PeerCredentials,
        /// The process, where the transport states it.
        pid: Option<u32>,
    },
    /// The client calls a method.
    Called(ForwardedCall),
    /// The client has gone.
    Left,
}

#[derive(Default)]
struct ForwardedQueue {
    /// `None` after the service has ended.
    events: Mutex<Option<VecDeque<(ForwardedClientId, ForwardedEvent)>>>,
    /// Performs the queued calls, or lets the server's thread do it.
    serve: OnceLock<Box<dyn Fn() + Send + Sync>>,
    clients: AtomicU64,
}

impl ForwardedQueue {
    fn events(&self) -> MutexGuard<'_, Option<VecDeque<(ForwardedClientId, ForwardedEvent)>>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops the event if the service has ended.
    fn push(&self, client: ForwardedClientId, event: ForwardedEvent) {
        match &mut *self.events() {
            Some(events) => events.push_back((client, event)),
            None => return,
        }
        if let Some(serve) = self.serve.get() {
            serve();
        }
    }
}

/// The sending side, for the other server.
#[derive(Clone)]
pub struct ForwardedSender(Arc<ForwardedQueue>);

/// The receiving side, for the socket server. Once it is dropped, calls get no reply.
pub struct ForwardedReceiver(Arc<ForwardedQueue>);

/// Creates both sides.
pub fn forwarded_calls() -> (ForwardedSender, ForwardedReceiver) {
    let queue =
        Arc::new(ForwardedQueue { events: Mutex::new(Some(VecDeque::new())), ..ForwardedQueue::default() });
    (ForwardedSender(Arc::clone(&queue)), ForwardedReceiver(queue))
}

impl fmt::Debug for ForwardedSender {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("ForwardedSender").finish_non_exhaustive()
    }
}

impl fmt::Debug for ForwardedReceiver {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("ForwardedReceiver").finish_non_exhaustive()
    }
}

impl ForwardedSender {
    /// Adds a client. It counts as a connection from its first call on; over a limit, each call gets that error.
    pub fn connect(&self, credentials: PeerCredentials, pid: Option<u32>) -> ForwardedClient {
        let client = self.0.clients.fetch_add(1, Ordering::Relaxed);
        let connection = ForwardedClient { queue: Arc::clone(&self.0), client };
        if let Some(events) = &mut *self.0.events() {
            events.push_back((client, ForwardedEvent::Connected { credentials, pid }));
        }
        connection
    }
}

/// A client of the other server. When it is dropped, the service abandons its open spans.
pub struct ForwardedClient {
    queue: Arc<ForwardedQueue>,
    client: ForwardedClientId,
}

impl fmt::Debug for ForwardedClient {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("ForwardedClient").field("client", &self.client).finish_non_exhaustive()
    }
}

impl ForwardedClient {
    /// Calls a method. The reply may be sent before this returns.
    pub fn call(&self, call: ForwardedCall) {
        self.queue.push(self.client, ForwardedEvent::Called(call));
    }
}

impl Drop for ForwardedClient {
    fn drop(&mut self) {
        self.queue.push(self.client, ForwardedEvent::Left);
    }
}

impl ForwardedReceiver {
    /// Sets the function that the sending side calls after it has queued something.
    pub fn set_serve(&self, serve: impl Fn() + Send + Sync + 'static) {
        // Fails only if it is set already; there is one server.
        let _ = self.0.serve.set(Box::new(serve));
    }

    /// Takes what is queued, in order.
    pub fn take_events(&self) -> VecDeque<(ForwardedClientId, ForwardedEvent)> {
        self.0.events().as_mut().map(std::mem::take).unwrap_or_default()
    }
}

impl Drop for ForwardedReceiver {
    fn drop(&mut self) {
        // Outside of the lock: a dropped call may lead to another one.
        let dropped = self.0.events().take();
        drop(dropped);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use wattspan_client::protocol::GetInfo;

    use super::*;
    use crate::service::Reply;

    fn credentials() -> PeerCredentials {
        PeerCredentials { uid: 7, gid: 8, groups: vec![9] }
    }

    fn call() -> (ForwardedCall, Receiver<MethodResult>) {
        let (sender, results) = channel();
        let reply: ReplySender = Box::new(move |result| drop(sender.send(result)));
        let request = Ok(Request::GetInfo(GetInfo {}));
        (ForwardedCall { method: MethodName::GetInfo, request, oneway: false, reply }, results)
    }

    #[test]
    fn calls_arrive_in_order_with_the_credentials_and_are_answered() {
        let (sender, receiver) = forwarded_calls();
        let client = sender.connect(credentials(), Some(3));
        let (call, results) = call();
        client.call(call);
        drop(client);
        let mut events = receiver.take_events().into_iter();
        let (first, connected) = events.next().unwrap();
        let ForwardedEvent::Connected { credentials: stated, pid } = connected else { panic!() };
        assert_eq!((stated, pid), (credentials(), Some(3)));
        let (second, ForwardedEvent::Called(call)) = events.next().unwrap() else { panic!() };
        (call.reply)(Ok(Reply::EMPTY));
        assert_eq!(results.recv().unwrap(), Ok(Reply::EMPTY));
        let (third, ForwardedEvent::Left) = events.next().unwrap() else { panic!() };
        assert_eq!([second, third], [first; 2]);
        assert!(events.next().is_none() && receiver.take_events().is_empty());
    }

    #[test]
    fn a_call_of_a_service_that_has_ended_gets_no_reply() {
        let (sender, receiver) = forwarded_calls();
        let client = sender.connect(credentials(), None);
        let (before, before_results) = call();
        client.call(before);
        drop(receiver);
        let (after, after_results) = call();
        client.call(after);
        assert!(before_results.recv().is_err() && after_results.recv().is_err());
    }

    #[test]
    fn each_call_is_announced() {
        let (sender, receiver) = forwarded_calls();
        let (announce, announced) = channel();
        receiver.set_serve(move || announce.send(()).unwrap());
        let client = sender.connect(credentials(), None);
        client.call(call().0);
        client.call(call().0);
        assert_eq!(announced.try_iter().count(), 2);
        drop(client);
        assert_eq!(announced.try_iter().count(), 1);
    }
}
