//! The span client's connection to the daemon: connects, writes queued calls, reads replies, and reconnects.
//!
//! Owns the socket. A connection is used once the daemon has answered GetInfo; it is closed when the daemon closes it,
//! sends an invalid reply, or makes no progress. Each change of the connection's state is logged once.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;
use wattspan_client::SocketPath;
use wattspan_client::protocol::{Access, Call, DaemonInfo, GetInfo, IncomingReply, MESSAGE_TERMINATOR};

use super::span_client::{CallReceiver, DaemonCall, ReplyHandler, SpanClientState};

/// The pause before a new attempt to connect: the first, and the longest.
const RECONNECT_DELAYS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// How long the daemon may take for its first reply, and for a write to its socket.
const STALL_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the daemon may take to reply to a close: a settled account can wait for a slow counter.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

/// The longest accepted message.
const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// The most calls in one write.
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
                    log(&format!("connected to the daemon at {}", path.display()));
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
            log(&format!("{reason}; requests are forwarded unmeasured until the daemon answers"));
            last_status = Some(reason);
        }
        if !discard_calls_for(pause, &mut calls, state).await {
            return;
        }
        pause = (pause * 2).min(RECONNECT_DELAYS.1);
    }
}

/// Waits for `pause` and discards the calls that are queued meanwhile; false where every sender is dropped.
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
    let mut last_error = String::from("no socket path of the daemon is configured");
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
                    return Err(io::Error::other("it closed the connection before its first reply"));
                }
            }
            Ok((stream, buffer))
        };
        match timeout(STALL_TIMEOUT, handshake).await {
            Ok(Ok((stream, buffer))) => match check_access(&buffer) {
                Ok(()) => return Ok((stream, path)),
                Err(reason) => last_error = format!("the daemon at {at}: {reason}"),
            },
            Ok(Err(reason)) => last_error = format!("no daemon at {at}: {reason}"),
            Err(_) => last_error = format!("the daemon at {at} does not answer"),
        }
    }
    Err(last_error)
}

/// Checks that this user may open spans. `buffer` holds one message, the reply to GetInfo.
fn check_access(buffer: &[u8]) -> Result<(), String> {
    let message = buffer.split(|&byte| byte == MESSAGE_TERMINATOR).next().unwrap_or_default();
    let reply = IncomingReply::parse(message).map_err(|error| error.to_string())?;
    match reply.into_result::<DaemonInfo>() {
        Ok(Ok(info)) if info.access == Access::None => {
            Err("this user may not open spans; run `wattspan doctor` to see how to get access".into())
        }
        Ok(Ok(_)) => Ok(()),
        Ok(Err(method_error)) => Err(method_error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// Sends calls over one connection. Returns the reason why the connection was lost, or `None` once every sender of
/// calls is dropped.
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
        // Before the first await after the receive: this future can be dropped at any await.
        batch.iter().for_each(|_| state.mark_dequeued());
        // The task of the request continues first; these calls carry their time stamps.
        tokio::task::yield_now().await;
        for DaemonCall { generation: call_generation, encode, reply_handler } in batch.drain(..) {
            if call_generation == generation {
                encode(&mut bytes);
                pending.lock().unwrap_or_else(PoisonError::into_inner).extend(reply_handler);
            }
        }
        match timeout(STALL_TIMEOUT, writer.write_all(&bytes)).await {
            Ok(Ok(())) => bytes.clear(),
            Ok(Err(error)) => return Some(format!("the connection to the daemon failed: {error}")),
            Err(_) => return Some("the daemon does not read from its socket".into()),
        }
    }
}

/// Reads replies until the connection is lost, and returns the reason.
async fn read_replies(
    mut reader: OwnedReadHalf,
    pending: &PendingReplies,
    state: &SpanClientState,
) -> String {
    let mut buffer = Vec::new();
    loop {
        match timeout(STALL_TIMEOUT, reader.read_buf(&mut buffer)).await {
            Ok(Ok(0)) => return "the daemon closed the connection".into(),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return format!("the connection to the daemon failed: {error}"),
            Err(_) if is_oldest_end_overdue(pending) => return "the daemon does not answer".into(),
            Err(_) => {}
        }
        if let Err(reason) = handle_messages(&mut buffer, pending, state) {
            return reason;
        }
        if buffer.len() > MAX_MESSAGE_BYTES {
            return "the daemon sent a message over the length limit".into();
        }
    }
}

fn is_oldest_end_overdue(pending: &PendingReplies) -> bool {
    match pending.lock().unwrap_or_else(PoisonError::into_inner).front() {
        Some(ReplyHandler::End(pending_end)) => pending_end.queued_at.elapsed() > SETTLE_TIMEOUT,
        Some(ReplyHandler::Open(_)) | None => false,
    }
}

/// Handles every complete message and removes it from `buffer`.
fn handle_messages(
    buffer: &mut Vec<u8>,
    pending: &PendingReplies,
    state: &SpanClientState,
) -> Result<(), String> {
    let mut from = 0;
    while let Some(length) = memchr::memchr(MESSAGE_TERMINATOR, buffer.get(from..).unwrap_or_default()) {
        let message = buffer.get(from..from + length).unwrap_or_default();
        let reply_handler = pending.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        match reply_handler.ok_or("the daemon sent a reply without a call")? {
            ReplyHandler::Open(server) => {
                if let Some(error) = server.handle_open_reply(message)? {
                    state.log_refused_span(&error);
                }
            }
            ReplyHandler::End(pending_end) => {
                state.record_account_latency(pending_end.queued_at.elapsed());
                pending_end.handle_reply(message)?;
            }
        }
        from += length + 1;
    }
    buffer.drain(..from);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::net::UnixListener;
    use wattspan_client::protocol::{CloseSpan, MethodReply, OpenSpan};

    use super::*;
    use crate::log::LogSink;
    use crate::server_process::ServerProcessTracker;
    use crate::span_client::SpanClient;

    fn info() -> DaemonInfo {
        DaemonInfo {
            version: "1".into(),
            boot_id: String::new(),
            now_ns: 1,
            started_ns: None,
            horizon_ns: 1,
            history_ns: 1,
            domains: Vec::new(),
            at_least: None,
            absent: Vec::new(),
            samplers: Vec::new(),
            simulated: None,
            keeping: None,
            confinement: None,
            spans: None,
            access: Access::Span,
        }
    }

    fn client() -> (SpanClient, CallReceiver) {
        let log = LogSink::new(|_| ());
        SpanClient::new(Duration::ZERO, Arc::default(), log, ServerProcessTracker::new(None, log))
    }

    #[tokio::test]
    async fn the_socket_that_answered_is_logged() {
        let directory = tempfile::tempdir().unwrap();
        let paths = ["none.sock", "here.sock"].map(|name| directory.path().join(name));
        let listener = UnixListener::bind(&paths[1]).unwrap();
        let (client, calls) = client();
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
        let expected = format!("connected to the daemon at {}", paths[1].display());
        assert_eq!(*logged.lock().unwrap(), expected);
    }

    #[tokio::test]
    async fn calls_lost_with_a_connection_leave_the_queue() {
        let (client, mut calls) = client();
        client.state.set_generation(1);
        // Twice MAX_QUEUED_CALLS, in batches whose connection is lost before they are written.
        for _ in 0..128 {
            for _ in 0..128 {
                let span = client.open_span("a".into(), OpenSpan::default).expect("the queue is empty");
                drop(span.close(CloseSpan::default()));
            }
            let (stream, _other) = UnixStream::pair().unwrap();
            let (_reader, writer) = stream.into_split();
            let pending = Mutex::new(VecDeque::new());
            let writing = write_calls(writer, 1, &mut calls, &pending, &client.state);
            tokio::pin!(writing);
            std::future::poll_fn(|cx| {
                assert!(writing.as_mut().poll(cx).is_pending(), "it yields to the request first");
                std::task::Poll::Ready(())
            })
            .await;
        }
        assert_eq!(client.state.counters.ended_spans(), 128 * 128);
    }
}
