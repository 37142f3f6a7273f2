//! A pool of connections to servers, over TCP or TLS, HTTP/1.1 or HTTP/2.
//!
//! Trusts the system's certificates, or those in `SSL_CERT_FILE`. Uses HTTP/2 where TLS negotiates it or the settings
//! require it. A pooled connection that was closed is replaced before a request is sent on it. Redirects are not
//! followed, bodies are not decoded, and a server with an invalid certificate is rejected.

use std::io;
use std::time::Duration;

use http_body::Body;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
/// Shows whether a request got a connection.
pub use hyper_util::client::legacy::connect::{CaptureConnection, capture_connection};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::{BaseUrl, BodyError};

/// A pool for requests with bodies of type `B`.
pub type ConnectionPool<B> = Client<HttpsConnector<HttpConnector>, B>;

/// The timeout of a TCP connection attempt.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an idle connection stays in the pool. Python servers close idle connections after 5 s; the pool detects
/// that.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// The largest head of a request or response.
pub const MAX_HEADER_BYTES: usize = 64 << 10;

#[derive(Debug, Clone, Copy, Default)]
pub struct PoolSettings {
    /// Use HTTP/2 without negotiation, also without TLS.
    pub http2_only: bool,
}

/// Builds a pool for `base_url`.
///
/// # Errors
/// `base_url` needs TLS, and the system has no trusted certificates.
pub fn build_pool<B>(base_url: &BaseUrl, settings: PoolSettings) -> io::Result<ConnectionPool<B>>
where
    B: Body + Send + 'static + Unpin,
    B::Data: Send,
    B::Error: Into<BodyError>,
{
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp.set_keepalive(Some(Duration::from_secs(60)));
    // The load of the system's certificates takes milliseconds, and plain HTTP does not need them.
    let builder = HttpsConnectorBuilder::new();
    let provider = rustls::crypto::ring::default_provider();
    let builder = if base_url.is_tls() {
        builder.with_provider_and_native_roots(provider).map_err(|error| {
            let remedy = "install ca-certificates or set SSL_CERT_FILE";
            io::Error::new(error.kind(), format!("no trusted certificates found ({error}); {remedy}"))
        })?
    } else {
        let no_roots = rustls::RootCertStore::empty();
        let config = rustls::ClientConfig::builder_with_provider(provider.into())
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(no_roots)
            .with_no_client_auth();
        builder.with_tls_config(config)
    };
    let builder = builder.https_or_http();
    let connector = match settings.http2_only {
        true => builder.enable_http2().wrap_connector(tcp),
        false => builder.enable_all_versions().wrap_connector(tcp),
    };
    let mut client = Client::builder(TokioExecutor::new());
    client
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .http1_preserve_header_case(true)
        .http1_max_buf_size(MAX_HEADER_BYTES)
        .http2_only(settings.http2_only)
        .http2_max_header_list_size(MAX_HEADER_BYTES as u32)
        .http2_keep_alive_interval(Duration::from_secs(30))
        .set_host(false);
    Ok(client.build(connector))
}
