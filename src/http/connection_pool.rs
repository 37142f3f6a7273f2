//! A pool of connections to servers, over TCP or TLS, HTTP/1.1 or HTTP/2.
//!
//! Owns how a connection comes about: time-outs for connecting, the certificates that are trusted (the system's, or
//! those that `SSL_CERT_FILE` names), HTTP/2 where TLS agrees on it or where it was asked for. A kept connection that
//! turns out to be closed is replaced before anything of a request was sent on it. Never follows a redirect, never
//! decodes a body, never speaks TLS to a server whose certificate does not hold.

use std::io;
use std::time::Duration;

use http_body::Body;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::{BaseUrl, BodyError};

/// Requests in, replies out.
pub type ConnectionPool<B> = Client<HttpsConnector<HttpConnector>, B>;

/// How long connecting may take, name and TLS included as far as they can be told apart.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an unused connection is kept. Servers of Python close theirs after 5 s; a stale one is noticed anyway.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Largest head of a reply, in bytes.
pub const MAX_HEADER_BYTES: usize = 64 << 10;

/// How a pool is set up.
#[derive(Debug, Clone, Copy, Default)]
pub struct PoolSettings {
    /// Speak HTTP/2 from the first byte, also without TLS.
    pub http2_only: bool,
}

/// A pool for requests with bodies of type `B`.
///
/// # Errors
/// `base_url` needs TLS, and the system has no certificates.
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
    // Reading the system's certificates takes milliseconds, and plain HTTP has no use for them.
    let builder = HttpsConnectorBuilder::new();
    let provider = rustls::crypto::ring::default_provider();
    let builder = if base_url.is_tls() {
        builder.with_provider_and_native_roots(provider).map_err(|error| {
            let remedy = "install ca-certificates or set SSL_CERT_FILE";
            io::Error::new(error.kind(), format!("no certificates to trust ({error}); {remedy}"))
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
