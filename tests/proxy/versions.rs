//! HTTP/2 and TLS, from clients to the proxy and from the proxy to the server.

use crate::http_stub;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::fixture::LONG_PATIENCE;
use crate::http_stub::{HttpConnection, StubServer, TestProxy, inference_request};
use crate::support::{STEADY_MACHINE, TestDaemon};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use wattspan_http::BufferedBody;

const EVENTS: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\ndata: [DONE]\n\n";

/// An HTTP/2 server, over TLS if configured; replies with events and a trailer. Headers of the reply state the
/// request's version, cookie and body length.
async fn serve(listener: TcpListener, tls: Option<tokio_rustls::TlsAcceptor>) {
    while let Ok((stream, _)) = listener.accept().await {
        let tls = tls.clone();
        tokio::spawn(async move {
            match tls {
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        answer(TokioIo::new(stream)).await;
                    }
                }
                None => answer(TokioIo::new(stream)).await,
            }
        });
    }
}

async fn answer<S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static>(io: S) {
    let service = hyper::service::service_fn(|request: Request<Incoming>| async move {
        let version = format!("{:?}", request.version());
        let mut cookies = request.headers().get_all("cookie").iter();
        let cookie = cookies.next().map_or("", |value| value.to_str().unwrap()).to_owned();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let trailers = HeaderMap::from_iter([(http::HeaderName::from_static("x-sum"), "7".parse().unwrap())]);
        // Of unknown length, as streams are.
        let pieces = [Bytes::from(EVENTS)].into();
        let stream = BufferedBody { chunks: pieces, trailers: Some(trailers), has_known_length: false };
        let reply = Response::builder()
            .header("content-type", "text/event-stream")
            .header("x-version", version)
            .header("x-cookie", cookie)
            .header("x-length", body.len().to_string());
        Ok::<_, Infallible>(reply.body(stream).unwrap())
    });
    let _ =
        hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await;
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Starts `serve` on a thread of its own; returns its address.
fn upstream(tls: Option<tokio_rustls::TlsAcceptor>) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        runtime().block_on(async move { serve(TcpListener::from_std(listener).unwrap(), tls).await });
    });
    address
}

#[test]
fn many_streams_of_one_http2_connection_are_each_measured() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let length = EVENTS.len();
    let reply = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n{EVENTS}\r\n0\r\n\r\n"
    );
    let received = Arc::new(std::sync::Mutex::new(Vec::new()));
    let listener = Arc::clone(&received);
    let stub = StubServer::new(move |mut connection| {
        while let Some(request) = connection.read_request() {
            listener.lock().unwrap().push(request);
            connection.send(reply.as_bytes());
        }
    });
    let proxy = TestProxy::start(&format!("http://{}", stub.address), &daemon.socket(), &LONG_PATIENCE)
        .wait_for_daemon();
    runtime().block_on(async {
        let io = TokioIo::new(TcpStream::connect(proxy.address).await.unwrap());
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        let mut tasks = Vec::new();
        for _ in 0..50 {
            let mut sender = sender.clone();
            tasks.push(tokio::spawn(async move {
                let request = Request::post("http://test/v1/chat/completions")
                    .header("cookie", "a=1")
                    .header("cookie", "b=2")
                    .body(Full::new(Bytes::from_static(b"{}")))
                    .unwrap();
                let reply = sender.send_request(request).await.unwrap();
                assert_eq!(reply.version(), Version::HTTP_2);
                let collected = reply.into_body().collect().await.unwrap();
                let trailers = collected.trailers().cloned().unwrap();
                assert!(trailers["wattspan-energy"].to_str().unwrap().starts_with("state=settled"));
                let text = String::from_utf8(collected.to_bytes().to_vec()).unwrap();
                assert!(text.starts_with(EVENTS) && text.contains(": wattspan {"), "{text}");
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
    });
    let received = received.lock().unwrap();
    assert!(received.iter().all(|request| request.header("cookie") == Some("a=1; b=2")), "{:?}", received[0]);
    drop(received);
    let counters = proxy.stop();
    counters.assert_balanced();
    assert_eq!(counters.closed, 50);
}

#[test]
fn an_http2_only_server_gets_http2() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let address = upstream(None);
    let proxy = TestProxy::start(&format!("http://{address}"), &daemon.socket(), &["--upstream-http2"])
        .wait_for_daemon();
    let mut connection = HttpConnection::connect(proxy.address);
    connection.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nTE: trailers\r\nConnection: TE\r\nContent-Length: 2\r\n\r\n{}");
    let reply = connection.read_reply().unwrap();
    assert_eq!((reply.header("x-version"), reply.header("x-length")), (Some("HTTP/2.0"), Some("2")));
    assert!(reply.text().starts_with(EVENTS), "{}", reply.text());
    assert!(http_stub::header_value(&reply.trailers, "wattspan-energy").is_some(), "{:?}", reply.trailers);
    proxy.stop().assert_balanced();
}

#[test]
fn an_http2_server_without_100_continue_gets_the_body() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let address = upstream(None);
    let proxy = TestProxy::start(&format!("http://{address}"), &daemon.socket(), &["--upstream-http2"])
        .wait_for_daemon();
    let mut connection = HttpConnection::connect(proxy.address);
    connection.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}");
    let reply = connection.read_reply().unwrap_or_default();
    assert_eq!((reply.status(), reply.header("x-length")), (200, Some("2")), "{reply:?}");
    proxy.stop().assert_balanced();
}

/// A server's TLS configuration with a new certificate, and the file by which a client trusts it.
fn tls(directory: &Path, protocols: &[&[u8]]) -> (tokio_rustls::TlsAcceptor, std::path::PathBuf) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let file = directory.join("trusted.pem");
    std::fs::write(&file, made.cert.pem()).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    (tokio_rustls::TlsAcceptor::from(Arc::new(config)), file)
}

#[test]
fn a_tls_server_is_accepted_only_with_a_trusted_certificate() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let directory = tempfile::tempdir().unwrap();
    let (acceptor, trusted) = tls(directory.path(), &[b"h2", b"http/1.1"]);
    let (_, stranger) = tls(
        &{
            let other = directory.path().join("other");
            std::fs::create_dir(&other).unwrap();
            other
        },
        &[],
    );
    let address = upstream(Some(acceptor));
    let url = format!("https://localhost:{}", address.port());
    let with = |file: &Path| {
        let trust = [("SSL_CERT_FILE", file)];
        TestProxy::start_with_env(&url, &daemon.socket(), &LONG_PATIENCE, &trust).wait_for_daemon()
    };
    let proxy = with(&trusted);
    let mut connection = HttpConnection::connect(proxy.address);
    connection.send(&inference_request("{}"));
    let reply = connection.read_reply().unwrap();
    assert_eq!((reply.status(), reply.header("x-version")), (200, Some("HTTP/2.0")), "{}", reply.text());
    assert!(reply.text().contains("\"settled\""));
    proxy.stop().assert_balanced();
    let proxy = with(&stranger);
    let mut connection = HttpConnection::connect(proxy.address);
    connection.send(&inference_request("{}"));
    let reply = connection.read_reply().unwrap();
    assert_eq!(reply.status(), 502);
    assert!(reply.text().contains("certificate"), "{}", reply.text());
    proxy.stop().assert_balanced();
}

#[test]
fn a_stream_reset_counts_as_a_client_disconnect() {
    let daemon = TestDaemon::start(STEADY_MACHINE);
    let stub = StubServer::new(|mut connection| {
        connection.read_request();
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n: a\r\n");
        // Returns at end of file, when the proxy closes the connection.
        let _ = connection.read_to_end();
    });
    let proxy =
        TestProxy::start(&format!("http://{}", stub.address), &daemon.socket(), &[]).wait_for_daemon();
    runtime().block_on(async {
        let io = TokioIo::new(TcpStream::connect(proxy.address).await.unwrap());
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        let request = Request::post("http://test/v1/completions").body(Full::new(Bytes::new())).unwrap();
        let mut reply = sender.send_request(request).await.unwrap();
        reply.body_mut().frame().await.unwrap().unwrap();
        drop(reply);
        tokio::time::sleep(Duration::from_millis(50)).await;
    });
    let counters = proxy.stop();
    counters.assert_balanced();
    assert_eq!(counters.closed, 1);
}
