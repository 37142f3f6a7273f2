//! The daemon's end of the lane: connects, writes what is queued, reads what is answered, and begins again.
//!
//! Owns the socket. A daemon counts as there once it answered a first question; it counts as gone when it hangs up,
//! speaks nonsense, or makes no progress. Every change is told once, in one line.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use super::daemon_call::{DaemonCall, ReplyHandler};
use super::span_client::{CallReceiver, SpanClientState};
use crate::client::SocketPath;
use crate::protocol::{Access, Call, DaemonInfo, GetInfo, IncomingReply, MESSAGE_TERMINATOR};

/// Pause before the daemon is looked for again: at first, and at most.
const RECONNECT_DELAYS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// A daemon that takes longer for its first answer, or to take what it is sent, is as good as gone.
const STALL_TIMEOUT: Duration = Duration::from_secs(3);

/// A close that is answered later than this never will be; a settled account may wait for a slow counter.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

/// A daemon that sends more than this without an end is not one.
const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// Orders that are written at once.
const MAX_BATCH_CALLS: usize = 256;

/// Keeps the lane served until nobody is left to send orders.
pub async fn run(
    place: SocketPath,
    mut orders: CallReceiver,
    shared: &SpanClientState,
    tell: &(dyn Fn(&str) + Sync),
) {
    let (mut generation, mut pause, mut told) = (0, RECONNECT_DELAYS.0, None);
    loop {
        let began = Instant::now();
        let reason = match connect(&place).await {
            Ok((stream, path)) => {
                generation += 1;
                if told.take() != Some(String::new()) {
                    tell(&format!("the meter at {} answers", path.display()));
                    told = Some(String::new());
                }
                shared.set_generation(generation);
                let reason = run_connection(stream, generation, &mut orders, shared).await;
                shared.set_generation(0);
                let Some(reason) = reason else { return };
                if began.elapsed() > RECONNECT_DELAYS.1 {
                    pause = RECONNECT_DELAYS.0;
                }
                reason
            }
            Err(reason) => reason,
        };
        if told.as_ref() != Some(&reason) {
            tell(&format!("{reason}; requests go through unmeasured until the meter answers"));
            told = Some(reason);
        }
        if !discard_calls_for(pause, &mut orders, shared).await {
            return;
        }
        pause = (pause * 2).min(RECONNECT_DELAYS.1);
    }
}

/// Waits, and lets go of what is queued meanwhile; false where nobody is left.
async fn discard_calls_for(pause: Duration, orders: &mut CallReceiver, shared: &SpanClientState) -> bool {
    let end = tokio::time::sleep(pause);
    tokio::pin!(end);
    loop {
        tokio::select! {
            () = &mut end => return true,
            order = orders.recv() => match order {
                Some(_) => shared.mark_dequeued(),
                None => return false,
            },
        }
    }
}

/// Connects to the first place that answers a question; which that was.
async fn connect(place: &SocketPath) -> Result<(UnixStream, &Path), String> {
    let mut failure = String::from("no place to look for the meter at");
    for path in place.candidates() {
        let at = path.display();
        let meeting = async {
            let mut stream = UnixStream::connect(path).await?;
            let mut request = Vec::new();
            Call::new(GetInfo {}).encode(&mut request);
            stream.write_all(&request).await?;
            let mut incoming = Vec::new();
            while !incoming.contains(&MESSAGE_TERMINATOR) {
                if stream.read_buf(&mut incoming).await? == 0 || incoming.len() > MAX_MESSAGE_BYTES {
                    return Err(io::Error::other("it hung up instead of answering"));
                }
            }
            Ok((stream, incoming))
        };
        match timeout(STALL_TIMEOUT, meeting).await {
            Ok(Ok((stream, incoming))) => match check_access(&incoming) {
                Ok(()) => return Ok((stream, path)),
                Err(reason) => failure = format!("the meter at {at}: {reason}"),
            },
            Ok(Err(reason)) => failure = format!("no meter at {at}: {reason}"),
            Err(_) => failure = format!("the meter at {at} does not answer"),
        }
    }
    Err(failure)
}

/// Whether the first answer lets this user open spans. Nothing follows it, since nothing else was asked.
fn check_access(incoming: &[u8]) -> Result<(), String> {
    let message = incoming.split(|&byte| byte == MESSAGE_TERMINATOR).next().unwrap_or_default();
    let answer = IncomingReply::parse(message).map_err(|error| error.to_string())?;
    match answer.into_result::<DaemonInfo>() {
        Ok(Ok(info)) if info.access == Access::None => {
            Err("this user may not open spans; `wattspan doctor` says how to get access".into())
        }
        Ok(Ok(_)) => Ok(()),
        Ok(Err(refusal)) => Err(refusal.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// Serves the lane over one connection; why it was lost, or `None` where nobody is left to send orders.
async fn run_connection(
    stream: UnixStream,
    generation: u64,
    orders: &mut CallReceiver,
    shared: &SpanClientState,
) -> Option<String> {
    let (reader, writer) = stream.into_split();
    let asked = Mutex::new(VecDeque::new());
    tokio::select! {
        reason = write_calls(writer, generation, orders, &asked, shared) => reason,
        reason = read_replies(reader, &asked, shared) => Some(reason),
    }
}

type PendingReplies = Mutex<VecDeque<ReplyHandler>>;

async fn write_calls(
    mut writer: OwnedWriteHalf,
    generation: u64,
    orders: &mut CallReceiver,
    asked: &PendingReplies,
    shared: &SpanClientState,
) -> Option<String> {
    let (mut batch, mut bytes) = (Vec::with_capacity(MAX_BATCH_CALLS), Vec::new());
    loop {
        if orders.recv_many(&mut batch, MAX_BATCH_CALLS).await == 0 {
            return None;
        }
        // They have left the queue, whatever becomes of them: this may end at any wait from here on.
        batch.iter().for_each(|_| shared.mark_dequeued());
        // The request itself goes first: what is told here says when it was.
        tokio::task::yield_now().await;
        for DaemonCall { generation: of, bytes: message, reply_handler: question } in batch.drain(..) {
            if of == generation {
                bytes.extend_from_slice(&message);
                asked.lock().unwrap_or_else(PoisonError::into_inner).extend(question);
            }
        }
        match timeout(STALL_TIMEOUT, writer.write_all(&bytes)).await {
            Ok(Ok(())) => bytes.clear(),
            Ok(Err(error)) => return Some(format!("the meter is gone: {error}")),
            Err(_) => return Some("the meter does not take what it is sent".into()),
        }
    }
}

async fn read_replies(mut reader: OwnedReadHalf, asked: &PendingReplies, shared: &SpanClientState) -> String {
    let mut incoming = Vec::new();
    let oldest = || match asked.lock().unwrap_or_else(PoisonError::into_inner).front() {
        Some(ReplyHandler::End(ask)) => Some(ask.queued_at),
        Some(ReplyHandler::Open(_)) | None => None,
    };
    loop {
        match timeout(STALL_TIMEOUT, reader.read_buf(&mut incoming)).await {
            Ok(Ok(0)) => return "the meter hung up".into(),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return format!("the meter is gone: {error}"),
            Err(_) if oldest().is_some_and(|since| since.elapsed() > SETTLE_TIMEOUT) => {
                return "the meter does not answer".into();
            }
            Err(_) => {}
        }
        let mut from = 0;
        while let Some(length) = memchr::memchr(MESSAGE_TERMINATOR, incoming.get(from..).unwrap_or_default())
        {
            let message = incoming.get(from..from + length).unwrap_or_default();
            let Some(question) = asked.lock().unwrap_or_else(PoisonError::into_inner).pop_front() else {
                return "the meter answers what nobody asked".into();
            };
            let answered = match question {
                ReplyHandler::Open(server) => server.handle_open_reply(message),
                ReplyHandler::End(ask) => {
                    shared.record_account_latency(ask.queued_at.elapsed());
                    ask.handle_reply(message)
                }
            };
            if let Err(reason) = answered {
                return reason;
            }
            from += length + 1;
        }
        incoming.drain(..from);
        if incoming.len() > MAX_MESSAGE_BYTES {
            return "the meter's answer does not end".into();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::net::UnixListener;

    use super::*;
    use crate::protocol::{CloseSpan, MethodReply, OpenSpan};
    use crate::proxy::escape::LogSink;
    use crate::proxy::server_process::ServerProcessTracker;
    use crate::proxy::span_client::SpanClient;

    fn info() -> DaemonInfo {
        DaemonInfo {
            version: "1".into(),
            boot_id: String::new(),
            now_ns: 1,
            horizon_ns: 1,
            history_ns: 1,
            domains: Vec::new(),
            at_least: None,
            absent: Vec::new(),
            samplers: Vec::new(),
            simulated: None,
            keeping: None,
            confinement: None,
            access: Access::Span,
        }
    }

    #[tokio::test]
    async fn the_socket_that_answered_is_logged() {
        let directory = tempfile::tempdir().unwrap();
        let places = ["none.sock", "here.sock"].map(|name| directory.path().join(name));
        let listener = UnixListener::bind(&places[1]).unwrap();
        let (lane, orders) = SpanClient::new(
            Duration::ZERO,
            Arc::default(),
            ServerProcessTracker::new(None, LogSink::new(|_| ())),
        );
        let logged = Mutex::new(String::new());
        let tell = |line: &str| logged.lock().unwrap().push_str(line);
        let daemon = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut answer = Vec::new();
            MethodReply::last(info()).encode(&mut answer);
            stream.write_all(&answer).await.unwrap();
            while lane.state.generation() == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = run(SocketPath::Search(places.to_vec()), orders, &lane.state, &tell) => {}
            () = daemon => {}
        }
        let expected = format!("the meter at {} answers", places[1].display());
        assert_eq!(*logged.lock().unwrap(), expected);
    }

    #[tokio::test]
    async fn calls_lost_with_a_connection_leave_the_queue() {
        let (lane, mut orders) = SpanClient::new(
            Duration::ZERO,
            Arc::default(),
            ServerProcessTracker::new(None, LogSink::new(|_| ())),
        );
        lane.state.set_generation(1);
        // As many as may wait, twice over, in batches whose connection is lost before they are written.
        for _ in 0..128 {
            for _ in 0..128 {
                let open = lane.open_span("a".into(), OpenSpan::default()).expect("nothing waits");
                drop(open.close(CloseSpan::default()));
            }
            let (stream, _other) = UnixStream::pair().unwrap();
            let (_reader, writer) = stream.into_split();
            let asked = Mutex::new(VecDeque::new());
            let writing = write_calls(writer, 1, &mut orders, &asked, &lane.state);
            tokio::pin!(writing);
            std::future::poll_fn(|cx| {
                assert!(writing.as_mut().poll(cx).is_pending(), "it lets the request go first");
                std::task::Poll::Ready(())
            })
            .await;
        }
        assert_eq!(lane.state.counters.ended_spans(), 128 * 128);
    }
}
