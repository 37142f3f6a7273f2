//! Accepts client connections and serves HTTP/1.1 or HTTP/2 on them.
//!
//! Owns the limits that protect clients from each other: the number of connections, the time and size of a request
//! head, the streams of one connection. The body of an inference request, which holds a span, has a limit in
//! `body_timer`; other bodies have none.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{timeout, timeout_at};
use wattspan_http::connection_pool::MAX_HEADER_BYTES;

use super::client_io::ClientIo;
use super::connection_limit::ConnectionLimit;
use super::context::{ClientContext, Proxy};
use super::forward::forward;
use super::head_timer::{HeadTimer, IDLE_TIMEOUT, ReceivedBytes};
use super::listener::{AcceptedConnection, ProxyListener};

/// The most concurrent streams of one HTTP/2 connection.
const MAX_CONCURRENT_STREAMS: u32 = 1024;

/// Accepts connections until `stop` is true; open connections then shut down gracefully.
pub async fn serve(
    listener: ProxyListener,
    proxy: Arc<Proxy>,
    limit: ConnectionLimit,
    head_timeout: Duration,
    stop: watch::Receiver<bool>,
) {
    let mut stopped = stop.clone();
    loop {
        let accepted = tokio::select! {
            accepted = limit.accept_batch(&listener) => accepted,
            _ = stopped.wait_for(|stop| *stop) => return,
        };
        match accepted {
            Ok(batch) => {
                for (connection, permit) in batch {
                    let (proxy, stop) = (Arc::clone(&proxy), stop.clone());
                    tokio::spawn(async move {
                        // A failed connection concerns its client alone, which sees the failure itself.
                        let _ = serve_connection(connection, permit, proxy, head_timeout, stop).await;
                    });
                }
            }
            Err(error) => {
                proxy.log.write_line(&format!("cannot accept a connection: {error}"));
                // The process has no free descriptor: other connections must end first.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn serve_connection(
    connection: AcceptedConnection,
    permit: OwnedSemaphorePermit,
    proxy: Arc<Proxy>,
    head_timeout: Duration,
    mut stop: watch::Receiver<bool>,
) -> Result<(), wattspan_http::BodyError> {
    connection.set_nodelay()?;
    // Before the first read: the client's user at the time of the accept counts.
    let annotation_mode = proxy.annotation_mode_for(&connection).await;
    let mut first_byte = [0];
    tokio::select! {
        first = timeout(IDLE_TIMEOUT, connection.peek(&mut first_byte)) => first??,
        _ = stop.wait_for(|stop| *stop) => return Ok(()),
    };
    let first_deadline = Instant::now() + head_timeout;
    let http2 = tokio::select! {
        http2 = timeout_at(first_deadline.into(), is_http2(&connection)) => http2??,
        _ = stop.wait_for(|stop| *stop) => return Ok(()),
    };
    let received = ReceivedBytes::default();
    let (io, informational) = ClientIo::new(connection, received.clone());
    let client = ClientContext::new(proxy, annotation_mode, (!http2).then_some(informational), permit);
    let has_request = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&has_request);
    let service = service_fn(move |request: Request<Incoming>| {
        seen.store(true, Ordering::Relaxed);
        let client = client.clone();
        async move { Ok::<_, Infallible>(forward(&client, request).await) }
    });
    if http2 {
        let connection = http2_builder().serve_connection(io, service);
        tokio::pin!(connection);
        // hyper has no timeout for the preface and the first head of HTTP/2.
        let no_head = async {
            tokio::time::sleep_until(first_deadline.into()).await;
            if has_request.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            ended = connection.as_mut() => return Ok(ended?),
            () = no_head => return Ok(()),
            _ = stop.wait_for(|stop| *stop) => connection.as_mut().graceful_shutdown(),
        }
        Ok(connection.await?)
    } else {
        let timer = HeadTimer { received, first_deadline, head_timeout };
        let connection = http1_builder(timer).serve_connection(io, service).with_upgrades();
        tokio::pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => return Ok(ended?),
            _ = stop.wait_for(|stop| *stop) => connection.as_mut().graceful_shutdown(),
        }
        Ok(connection.await?)
    }
}

fn http1_builder(timer: HeadTimer) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(timer)
        .header_read_timeout(IDLE_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        .preserve_header_case(true)
        .auto_date_header(false);
    builder
}

fn http2_builder() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .max_header_list_size(MAX_HEADER_BYTES as u32)
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .max_send_buf_size(MAX_HEADER_BYTES)
        .auto_date_header(false);
    builder
}

/// Whether the client's first bytes are the HTTP/2 preface. HTTP/1.1 has no such method: PRI is reserved (RFC 9113).
async fn is_http2(connection: &AcceptedConnection) -> io::Result<bool> {
    const PREFACE: &[u8] = b"PRI ";
    const MAX_PEEKS: u32 = 200;
    let mut first = [0; PREFACE.len()];
    for _ in 0..MAX_PEEKS {
        let count = connection.peek(&mut first).await?;
        let first = first.get(..count).unwrap_or_default();
        if count == 0 || !PREFACE.starts_with(first) {
            return Ok(false);
        }
        if count == PREFACE.len() {
            return Ok(true);
        }
        // The peeked bytes stay in the socket, so that it is ready at once: wait for the rest of the four bytes.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // A client that sent only "P" gets the timeout for heads.
    Ok(false)
}
