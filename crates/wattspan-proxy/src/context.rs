//! The state that requests share: that of the proxy, and that of the client's connection.
//!
//! Invariant: every connection holds the proxy and one connection permit for as long as it is open.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use wattspan_http::connection_pool::ConnectionPool;
use wattspan_http::{BaseUrl, BoxBody};

use super::annotation_policy::{AnnotationPolicy, PeerUser};
use super::client_io::InformationalSender;
use super::counters::ProxyCounters;
use super::listener::AcceptedConnection;
use super::log::RateLimitedLog;
use super::request_span::TokenWeights;
use super::route::Routes;
use super::span_client::SpanClient;

/// Where the energy is added to responses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AnnotationMode {
    /// Nowhere: responses are forwarded unchanged.
    Off,
    /// In headers, trailers and comments of event streams.
    #[default]
    Headers,
    /// As with `Headers`, and in `usage` of the JSON body.
    Usage,
}

/// The state that all requests share.
pub struct Proxy {
    pub upstream: BaseUrl,
    pub pool: ConnectionPool<BoxBody>,
    pub routes: Routes,
    pub annotation_mode: AnnotationMode,
    pub annotation_policy: AnnotationPolicy,
    pub weigh_by_tokens: bool,
    pub hash_prompts: bool,
    /// How long the body of an inference request may send nothing; in all it may wait ten times as long.
    pub body_timeout: Duration,
    pub span_client: SpanClient,
    pub token_weights: TokenWeights,
    pub counters: Arc<ProxyCounters>,
    pub log: RateLimitedLog,
    pub span_numbers: SpanNumbers,
}

impl Proxy {
    pub fn next_span_number(&self) -> u64 {
        self.span_numbers.next()
    }

    /// The mode for responses on this connection: [`AnnotationMode::Off`] where its user has no access or is unknown.
    pub async fn annotation_mode_for(&self, connection: &AcceptedConnection) -> AnnotationMode {
        if self.annotation_mode == AnnotationMode::Off || self.annotation_policy.is_unrestricted() {
            return self.annotation_mode;
        }
        let user = connection.peer_user().unwrap_or_else(|error| {
            self.log.write_line(&format!(
                "cannot look up the user of a connection, whose replies have no energy: {error}"
            ));
            PeerUser::Unknown
        });
        if self.annotation_policy.is_permitted(&user).await {
            self.annotation_mode
        } else {
            AnnotationMode::Off
        }
    }
}

/// Numbers for spans. The seed differs in every process, so that the spans of two proxies with the same process id have
/// different ids.
#[derive(Debug, Default)]
pub struct SpanNumbers {
    seed: RandomState,
    count: AtomicU64,
}

impl SpanNumbers {
    /// A number that no other span has, and never 0.
    fn next(&self) -> u64 {
        self.seed.hash_one(self.count.fetch_add(1, Ordering::Relaxed)).max(1)
    }
}

/// A client's connection, as its requests use it. An upgraded connection (a tunnel) keeps a clone for as long as it is
/// open.
#[derive(Clone)]
pub struct ClientContext {
    pub proxy: Arc<Proxy>,
    pub annotation_mode: AnnotationMode,
    /// `None` for HTTP/2, in which the proxy sends no informational responses.
    pub informational: Option<InformationalSender>,
    /// The connection's share of `max_connections`.
    _permit: Arc<OwnedSemaphorePermit>,
}

impl ClientContext {
    pub fn new(
        proxy: Arc<Proxy>,
        annotation_mode: AnnotationMode,
        informational: Option<InformationalSender>,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        ClientContext { proxy, annotation_mode, informational, _permit: Arc::new(permit) }
    }
}
