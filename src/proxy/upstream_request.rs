//! The request as the server gets it.
//!
//! Owns what is changed on the way there: headers of one hop, `Host`, the URL's base. Listens for what the server says
//! before its reply: "100 Continue" opens the body's gate, other early words go to the client at once.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, StatusCode, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

use super::client_io::InformationalSender;
use super::request_body::{ContinueGate, RequestBody, RequestedModel};
use crate::http::hop_by_hop::{self, ConnectionOptions};
use crate::http::{BaseUrl, BoxBody};

/// What the client's connection can carry.
pub struct ClientCapabilities {
    /// The connection options of its request.
    pub options: ConnectionOptions,
    /// The version of HTTP of its request.
    pub version: Version,
    /// The connection, should the protocol change.
    pub upgrade: Option<OnUpgrade>,
}

impl ClientCapabilities {
    /// Whether trailers reach the client behind a body whose length is known (`has_known_length`) or not.
    pub fn accepts_trailers(&self, has_known_length: bool) -> bool {
        self.version == Version::HTTP_2
            || (self.options.trailers && self.version == Version::HTTP_11 && !has_known_length)
    }
}

/// The request for `upstream`, whose model `requested_model` reads.
///
/// # Errors
/// Its URL is none there.
pub fn build_upstream_request(
    upstream: &BaseUrl,
    informational: Option<&InformationalSender>,
    mut request: Request<Incoming>,
    requested_model: Option<RequestedModel>,
) -> Result<(Request<BoxBody>, ClientCapabilities), http::Error> {
    let version = request.version();
    let options = hop_by_hop::strip(request.headers_mut());
    let upgrade = options.upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let expects_continue = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    let (gate, continue_sender) = match request.headers().get(header::EXPECT).is_some_and(expects_continue) {
        true => Some(ContinueGate::new()).unzip(),
        false => (None, None),
    };
    let (mut head, body) = request.into_parts();
    head.uri = upstream.request_uri(head.uri.path_and_query())?;
    head.version = Version::HTTP_11;
    hop_by_hop::set_connection_options(&mut head.headers, &options);
    head.headers.insert(header::HOST, upstream.host_header());
    join_cookies(&mut head.headers);
    let body = RequestBody::new(body, gate, requested_model).boxed_unsync();
    let mut request = Request::from_parts(head, body);
    let continue_sender = Mutex::new(continue_sender);
    let informational = informational.cloned().filter(|_| version == Version::HTTP_11);
    hyper::ext::on_informational(&mut request, move |response| {
        if response.status() == StatusCode::CONTINUE {
            let continue_sender = continue_sender.lock().unwrap_or_else(PoisonError::into_inner).take();
            // The body may be gone already; then nobody waits.
            let _ = continue_sender.map(|continue_sender| continue_sender.send(()));
        } else if let Some(informational) = &informational {
            let mut headers = response.headers().clone();
            hop_by_hop::strip(&mut headers);
            informational.send(response.status(), &headers);
        }
    });
    Ok((request, ClientCapabilities { options, version, upgrade }))
}

/// HTTP/2 may cut cookies into several headers, which HTTP/1.1 may not (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    const COOKIE: HeaderName = header::COOKIE;
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let values: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_maybe_shared(Bytes::from(values.join(&b"; "[..]))) {
        headers.insert(COOKIE, joined);
    }
}
