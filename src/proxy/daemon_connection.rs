//! The span client's connection to the daemon: connects, writes queued calls, reads replies, and reconnects.
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

use super::span_client::{CallReceiver, DaemonCall, ReplyHandler, SpanClientState};
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

/// Calls that are written at once.
const MAX_BATCH_CALLS: usize = 256;

/// Connects and reconnects until every sender of calls is dropped.
pub async fn run(
    socket_path: SocketPath,
    mut calls: CallReceiver,
    state: &SpanClientState,
    log: &(dyn Fn(&str) + Sync),
) {
    let (mut generation, mut pause, mut last_status) = (0, RECONNECT_DELAYS.0, None);
    loop {
        let started = Instant::now();
        let reason = match connect(&socket_path).await {
            Ok((stream, path)) => {
                generation += 1;
                if last_status.take() != Some(String::new()) {
                    log(&format!("the meter at {} answers", path.display()));
                    last_status = Some(String::new());
                }
                state.set_generation(generation);
                let reason = run_connection(stream, generation, &mut calls, state).await;
                state.set_generation(0);
                let Some(reason) = reason else { return };
                if started.elapsed() > RECONNECT_DELAYS.1 {
                    pause = RECONNECT_DELAYS.0;
                }
                reason
            }
            Err(reason) => reason,
        };
        if last_status.as_ref() != Some(&reason) {
            log(&format!("{reason}; requests go through unmeasured until the meter answers"));
            last_status = Some(reason);
        }
        if !discard_calls_for(pause, &mut calls, state).await {
            return;
        }
        pause = (pause * 2).min(RECONNECT_DELAYS.1);
    }
}

/// Waits, and discards the calls that are queued meanwhile; false where every sender is dropped.
async fn discard_calls_for(pause: Duration, calls: &mut CallReceiver, state: &SpanClientState) -> bool {
    let end = tokio::time::sleep(pause);
    tokio::pin!(end);
    loop {
        tokio::select! {
            () = &mut end => return true,
            call = calls.recv() => match call {
                Some(_) => state.mark_dequeued(),
                None => return false,
            },
        }
    }
}

/// Connects to the first socket that answers a call, and returns its path.
async fn connect(socket_path: &SocketPath) -> Result<(UnixStream, &Path), String> {
    let mut last_error = String::from("no place to look for the meter at");
    for path in socket_path.candidates() {
        let at = path.display();
        let handshake = async {
            let mut stream = UnixStream::connect(path).await?;
            let mut request = Vec::new();
            Call::new(GetInfo {}).encode(&mut request);
            stream.write_all(&request).await?;
            let mut buffer = Vec::new();
            while !buffer.contains(&MESSAGE_TERMINATOR) {
                if stream.read_buf(&mut buffer).await? == 0 || buffer.len() > MAX_MESSAGE_BYTES {
                    return Err(io::Error::other("it hung up instead of answering"));
                }
            }
            Ok((stream, buffer))
        };
        match timeout(STALL_TIMEOUT, handshake).await {
            Ok(Ok((stream, buffer))) => match check_access(&buffer) {
                Ok(()) => return Ok((stream, path)),
                Err(reason) => last_error = format!("the meter at {at}: {reason}"),
            },
            Ok(Err(reason)) => last_error = format!("no meter at {at}: {reason}"),
            Err(_) => last_error = format!("the meter at {at} does not answer"),
        }
    }
    Err(last_error)
}

/// Whether the first answer lets this user open spans. Nothing follows it, since nothing else was asked.
fn check_access(buffer: &[u8]) -> Result<(), String> {
    let message = buffer.split(|&byte| byte == MESSAGE_TERMINATOR).next().unwrap_or_default();
    let reply = IncomingReply::parse(message).map_err(|error| error.to_string())?;
    match reply.into_result::<DaemonInfo>() {
        Ok(Ok(info)) if info.access == Access::None => {
            Err("this user may not open spans; `wattspan doctor` says how to get access".into())
        }
        Ok(Ok(_)) => Ok(()),
        Ok(Err(method_error)) => Err(method_error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// Sends calls over one connection; why it was lost, or `None` where every sender of calls is dropped.
async fn run_connection(
    stream: UnixStream,
    generation: u64,
    calls: &mut CallReceiver,
    state: &SpanClientState,
) -> Option<String> {
    let (reader, writer) = stream.into_split();
    let pending = Mutex::new(VecDeque::new());
    tokio::select! {
        reason = write_calls(writer, generation, calls, &pending, state) => reason,
        reason = read_replies(reader, &pending, state) => Some(reason),
    }
}

type PendingReplies = Mutex<VecDeque<ReplyHandler>>;

async fn write_calls(
    mut writer: OwnedWriteHalf,
    generation: u64,
    calls: &mut CallReceiver,
    pending: &PendingReplies,
    state: &SpanClientState,
) -> Option<String> {
    let (mut batch, mut bytes) = (Vec::with_capacity(MAX_BATCH_CALLS), Vec::new());
    loop {
        if calls.recv_many(&mut batch, MAX_BATCH_CALLS).await == 0 {
            return None;
        }
        // They have left the queue, whatever becomes of them: this may end at any wait from here on.
        batch.iter().for_each(|_| state.mark_dequeued());
        // The request itself goes first: what is told here says when it was.
        tokio::task::yield_now().await;
        for DaemonCall { generation: call_generation, bytes: message, reply_handler } in batch.drain(..) {
            if call_generation == generation {
                bytes.extend_from_slice(&message);
                pending.lock().unwrap_or_else(PoisonError::into_inner).extend(reply_handler);
            }
        }
        match timeout(STALL_TIMEOUT, writer.write_all(&bytes)).await {
            Ok(Ok(())) => bytes.clear(),
            Ok(Err(error)) => return Some(format!("the meter is gone: {error}")),
            Err(_) => return Some("the meter does not take what it is sent".into()),
        }
    }
}

async fn read_replies(
    mut reader: OwnedReadHalf,
    pending: &PendingReplies,
    state: &SpanClientState,
) -> String {
    let mut buffer = Vec::new();
    let oldest_end = || match pending.lock().unwrap_or_else(PoisonError::into_inner).front() {
        Some(ReplyHandler::End(pending_end)) => Some(pending_end.queued_at),
        Some(ReplyHandler::Open(_)) | None => None,
    };
    loop {
        match timeout(STALL_TIMEOUT, reader.read_buf(&mut buffer)).await {
            Ok(Ok(0)) => return "the meter hung up".into(),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return format!("the meter is gone: {error}"),
            Err(_) if oldest_end().is_some_and(|queued_at| queued_at.elapsed() > SETTLE_TIMEOUT) => {
                return "the meter does not answer".into();
            }
            Err(_) => {}
        }
        let mut from = 0;
        while let Some(length) = memchr::memchr(MESSAGE_TERMINATOR, buffer.get(from..).unwrap_or_default()) {
            let message = buffer.get(from..from + length).unwrap_or_default();
            let Some(reply_handler) = pending.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
            else {
                return "the meter answers what nobody asked".into();
            };
            let handled = match reply_handler {
                ReplyHandler::Open(server) => server.handle_open_reply(message),
                ReplyHandler::End(pending_end) => {
                    state.record_account_latency(pending_end.queued_at.elapsed());
                    pending_end.handle_reply(message)
                }
            };
            if let Err(reason) = handled {
                return reason;
            }
            from += length + 1;
        }
        buffer.drain(..from);
        if buffer.len() > MAX_MESSAGE_BYTES {
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
    use crate::proxy::log::LogSink;
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
        let paths = ["none.sock", "here.sock"].map(|name| directory.path().join(name));
        let listener = UnixListener::bind(&paths[1]).unwrap();
        let (client, calls) = SpanClient::new(
            Duration::ZERO,
            Arc::default(),
            ServerProcessTracker::new(None, LogSink::new(|_| ())),
        );
        let logged = Mutex::new(String::new());
        let log = |line: &str| logged.lock().unwrap().push_str(line);
        let daemon = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut reply = Vec::new();
            MethodReply::last(info()).encode(&mut reply);
            stream.write_all(&reply).await.unwrap();
            while client.state.generation() == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = run(SocketPath::Search(paths.to_vec()), calls, &client.state, &log) => {}
            () = daemon => {}
        }
        let expected = format!("the meter at {} answers", paths[1].display());
        assert_eq!(*logged.lock().unwrap(), expected);
    }

    #[tokio::test]
    async fn calls_lost_with_a_connection_leave_the_queue() {
        let (client, mut calls) = SpanClient::new(
            Duration::ZERO,
            Arc::default(),
            ServerProcessTracker::new(None, LogSink::new(|_| ())),
        );
        client.state.set_generation(1);
        // As many as may wait, twice over, in batches whose connection is lost before they are written.
        for _ in 0..128 {
            for _ in 0..128 {
                let span = client.open_span("a".into(), OpenSpan::default()).expect("nothing waits");
                drop(span.close(CloseSpan::default()));
            }
            let (stream, _other) = UnixStream::pair().unwrap();
            let (_reader, writer) = stream.into_split();
            let pending = Mutex::new(VecDeque::new());
            let writing = write_calls(writer, 1, &mut calls, &pending, &client.state);
            tokio::pin!(writing);
            std::future::poll_fn(|cx| {
                assert!(writing.as_mut().poll(cx).is_pending(), "it lets the request go first");
                std::task::Poll::Ready(())
            })
            .await;
        }
        assert_eq!(client.state.counters.ended_spans(), 128 * 128);
    }
}
