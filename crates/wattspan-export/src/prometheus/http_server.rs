//! The HTTP server of the metrics: one request for each connection, which has a deadline from its accept to its end.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use wattspan_system::unix_socket::{self, SocketFile, SocketPermissions};

use super::http_access::{HttpAccess, MetricsAddress};
use super::metrics_text::{LatestSnapshot, TextFormat};
use super::tls_settings::TlsSettings;
use super::updater::{MetricsUpdater, PrometheusError};

/// The most open connections; further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 64;

/// The time for the TLS handshake and the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// The time for a whole connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(15);

/// The largest head of a request.
const MAX_HEAD_BYTES: usize = 16 << 10;

/// Prometheus expects the metrics at this path.
const METRICS_PATH: &str = "/metrics";

enum Listener {
    Tcp(StdTcpListener, Option<TlsAcceptor>),
    /// The drop of the second value removes the socket file.
    Unix(std::os::unix::net::UnixListener, SocketFile),
}

/// A server that is bound and does not accept connections yet.
pub struct MetricsServer {
    listener: Listener,
    access: Arc<HttpAccess>,
    latest: LatestSnapshot,
}

impl MetricsServer {
    /// Binds the socket. The members of `group` may connect to a Unix socket, besides its owner.
    ///
    /// # Errors
    /// A TCP address without a token or a client certificate, or beyond loopback without TLS; the address cannot be bound.
    pub fn bind(
        address: &MetricsAddress,
        group: Option<u32>,
        access: HttpAccess,
        tls: Option<&TlsSettings>,
        updater: &MetricsUpdater,
    ) -> Result<Self, PrometheusError> {
        let listener = match address {
            MetricsAddress::Tcp(address) => {
                check_tcp(address, &access, tls)?;
                let config = tls.map(TlsSettings::load).transpose()?;
                let bound = StdTcpListener::bind(address).and_then(|listener| {
                    listener.set_nonblocking(true)?;
                    Ok(listener)
                });
                Listener::Tcp(
                    bound.map_err(|error| cannot_listen(address, &error))?,
                    config.map(TlsAcceptor::from),
                )
            }
            MetricsAddress::Unix(path) => {
                if tls.is_some() || access.token.is_some() {
                    let message = "a Unix socket is opened by its group, without a token or TLS; give --listen ADDRESS:PORT";
                    return Err(PrometheusError::Setting(message.into()));
                }
                let (listener, file) = unix_socket::bind(path, SocketPermissions::from(group))
                    .map_err(|error| PrometheusError::Setting(error.to_string()))?;
                let has_group = |gid| std::fs::metadata(path).is_ok_and(|found| found.gid() == gid);
                if group.is_some_and(|gid| !has_group(gid)) {
                    let denied = "this user cannot give the socket to the group, since it is no member of it";
                    return Err(cannot_listen(address, &denied));
                }
                Listener::Unix(listener, file)
            }
        };
        Ok(Self { listener, access: Arc::new(access), latest: updater.latest() })
    }

    /// The URL or path that clients connect to.
    ///
    /// # Errors
    /// The system does not report the address.
    pub fn address(&self) -> io::Result<String> {
        match &self.listener {
            Listener::Tcp(listener, None) => Ok(format!("http://{}{METRICS_PATH}", listener.local_addr()?)),
            Listener::Tcp(listener, Some(_)) => {
                Ok(format!("https://{}{METRICS_PATH}", listener.local_addr()?))
            }
            Listener::Unix(_, file) => Ok(format!("unix:{} (path {METRICS_PATH})", file.path().display())),
        }
    }

    /// Serves until `stop` is ready.
    ///
    /// # Errors
    /// The system creates no runtime or cannot register the socket.
    pub fn serve(self, stop: impl Future<Output = ()>) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let served = runtime.block_on(async {
            tokio::select! {
                served = self.accept_all() => served,
                () = stop => Ok(()),
            }
        });
        runtime.shutdown_background();
        served
    }

    async fn accept_all(self) -> io::Result<()> {
        let Self { listener, access, latest } = self;
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let reply =
            move |local| RequestHandler { access: Arc::clone(&access), latest: latest.clone(), local };
        match listener {
            Listener::Tcp(listener, tls) => {
                let listener = TcpListener::from_std(listener)?;
                loop {
                    let permit = permit(&permits).await?;
                    let Some((stream, _)) = accepted(listener.accept().await).await else { continue };
                    let Ok(local) = stream.local_addr() else { continue };
                    let (handler, tls) = (reply(Some(local)), tls.clone());
                    spawn(permit, async move {
                        match tls {
                            None => handler.serve(stream).await,
                            Some(tls) => {
                                if let Ok(Ok(stream)) = timeout(HEAD_TIMEOUT, tls.accept(stream)).await {
                                    handler.serve(stream).await;
                                }
                            }
                        }
                    });
                }
            }
            Listener::Unix(listener, _file) => {
                let listener = UnixListener::from_std(listener)?;
                loop {
                    let permit = permit(&permits).await?;
                    let Some((stream, _)) = accepted(listener.accept().await).await else { continue };
                    let handler = reply(None);
                    spawn(permit, async move { handler.serve(stream).await });
                }
            }
        }
    }
}

/// Refuses a TCP address that anyone could read: other users of this machine on loopback, the network beyond it.
fn check_tcp(
    address: &SocketAddr,
    access: &HttpAccess,
    tls: Option<&TlsSettings>,
) -> Result<(), PrometheusError> {
    let has_client_certificates = tls.is_some_and(|tls| tls.client_authorities.is_some());
    let message = if access.token.is_none() && !has_client_certificates {
        "every user of this machine can connect to a TCP address, and energy readings reveal what others compute; give \
         --token-file FILE, or --tls-client-ca FILE with --tls-cert and --tls-key"
    } else if !address.ip().to_canonical().is_loopback() && tls.is_none() {
        "the network could read the token and the energy; give --tls-cert FILE and --tls-key FILE, or listen on 127.0.0.1"
    } else {
        return Ok(());
    };
    Err(PrometheusError::Setting(format!("--listen {address}: {message}")))
}

fn cannot_listen(address: &dyn std::fmt::Display, reason: &dyn std::fmt::Display) -> PrometheusError {
    PrometheusError::Setting(format!("cannot listen on {address}: {reason}"))
}

async fn permit(permits: &Arc<Semaphore>) -> io::Result<OwnedSemaphorePermit> {
    Arc::clone(permits).acquire_owned().await.map_err(io::Error::other)
}

/// An accepted connection. Without a free descriptor, other connections must end first.
async fn accepted<T>(result: io::Result<T>) -> Option<T> {
    if result.is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    result.ok()
}

/// Serves one connection with a deadline.
fn spawn(permit: OwnedSemaphorePermit, connection: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(async move {
        // A client that is too slow loses its reply.
        let _ = timeout(CONNECTION_TIMEOUT, connection).await;
        drop(permit);
    });
}

/// Answers the request of one connection.
struct RequestHandler {
    access: Arc<HttpAccess>,
    latest: LatestSnapshot,
    /// The address that the client connected to; `None` for a Unix socket.
    local: Option<SocketAddr>,
}

impl RequestHandler {
    async fn serve(self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        let service = service_fn(|request| {
            let response = self.respond(&request);
            async move { Ok::<_, Infallible>(response) }
        });
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(MAX_HEAD_BYTES)
            .max_headers(64)
            .keep_alive(false)
            .auto_date_header(false);
        // A failed connection concerns its client alone, which sees the failure itself.
        let _ = builder.serve_connection(TokioIo::new(stream), service).await;
    }

    fn respond(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if let Err(status) = self.access.check(request.headers(), self.local) {
            let mut response = refusal(status);
            if status == StatusCode::UNAUTHORIZED {
                let scheme = HeaderValue::from_static("Bearer realm=\"wattspan\"");
                response.headers_mut().insert(WWW_AUTHENTICATE, scheme);
            }
            return response;
        }
        if request.uri().path() != METRICS_PATH {
            return refusal(StatusCode::NOT_FOUND);
        }
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let mut response = refusal(StatusCode::METHOD_NOT_ALLOWED);
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        let accept = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let format = TextFormat::for_accept(accept);
        let mut response = Response::new(Full::new(self.latest.get().encode(format)));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

fn refusal(status: StatusCode) -> Response<Full<Bytes>> {
    let text = match status {
        StatusCode::UNAUTHORIZED => "the bearer token is missing or wrong\n",
        StatusCode::MISDIRECTED_REQUEST => {
            "the Host header names another server; add the name with --host-name\n"
        }
        StatusCode::NOT_FOUND => "the metrics are at /metrics\n",
        StatusCode::METHOD_NOT_ALLOWED => "only GET and HEAD\n",
        _ => "the request has no Host header\n",
    };
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn a_tcp_address_needs_a_client_check_and_beyond_loopback_tls() {
        let file = PathBuf::from("f");
        let tls = |client_authorities| TlsSettings {
            certificate: file.clone(),
            key: file.clone(),
            client_authorities,
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        wattspan_system::private_file::write(&path, "0123456789abcdef").unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let token =
            HttpAccess { token: Some(super::super::Token::read(&path).unwrap()), host_names: Vec::new() };
        let none = HttpAccess::default();
        let is_allowed = |address: &str, access: &HttpAccess, tls: Option<TlsSettings>| {
            check_tcp(&address.parse().unwrap(), access, tls.as_ref()).is_ok()
        };
        for loopback in ["127.0.0.1:0", "[::1]:0", "[::ffff:127.0.0.1]:0"] {
            assert!(!is_allowed(loopback, &none, None), "{loopback}");
            assert!(!is_allowed(loopback, &none, Some(tls(None))), "{loopback}");
            assert!(is_allowed(loopback, &none, Some(tls(Some(file.clone())))), "{loopback}");
            assert!(is_allowed(loopback, &token, None), "{loopback}");
        }
        for other in ["0.0.0.0:0", "[::]:0", "10.0.0.7:0"] {
            assert!(!is_allowed(other, &token, None), "{other}");
            assert!(is_allowed(other, &token, Some(tls(None))), "{other}");
        }
    }
}
