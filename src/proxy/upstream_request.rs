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

/// What the client asked of this hop.
pub struct ClientCapabilities {
    /// In its headers.
    pub options: ConnectionOptions,
    /// Over this version.
    pub version: Version,
    /// The connection, should the protocol change.
    pub upgrade: Option<OnUpgrade>,
}

impl ClientCapabilities {
    /// Whether trailers reach the client behind a body whose length is `known` or not.
    pub fn accepts_trailers(&self, known: bool) -> bool {
        self.version == Version::HTTP_2
            || (self.options.trailers && self.version == Version::HTTP_11 && !known)
    }
}

/// The request for `target`, read along by `asked`.
///
/// # Errors
/// Its URL is none there.
pub fn build_upstream_request(
    target: &BaseUrl,
    aside: Option<&InformationalSender>,
    mut request: Request<Incoming>,
    asked: Option<RequestedModel>,
) -> Result<(Request<BoxBody>, ClientCapabilities), http::Error> {
    let version = request.version();
    let wishes = hop_by_hop::strip(request.headers_mut());
    let upgrade = wishes.upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let waits = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    let (gate, opener) = match request.headers().get(header::EXPECT).is_some_and(waits) {
        true => Some(ContinueGate::new()).unzip(),
        false => (None, None),
    };
    let (mut head, body) = request.into_parts();
    head.uri = target.request_uri(head.uri.path_and_query())?;
    head.version = Version::HTTP_11;
    hop_by_hop::set_connection_options(&mut head.headers, &wishes);
    head.headers.insert(header::HOST, target.host_header());
    join_cookies(&mut head.headers);
    let body = RequestBody::new(body, gate, asked).boxed_unsync();
    let mut request = Request::from_parts(head, body);
    let opener = Mutex::new(opener);
    let aside = aside.cloned().filter(|_| version == Version::HTTP_11);
    hyper::ext::on_informational(&mut request, move |early| {
        if early.status() == StatusCode::CONTINUE {
            let opener = opener.lock().unwrap_or_else(PoisonError::into_inner).take();
            // The body may be gone already; then nobody waits.
            let _ = opener.map(|opener| opener.send(()));
        } else if let Some(aside) = &aside {
            let mut headers = early.headers().clone();
            hop_by_hop::strip(&mut headers);
            aside.send(early.status(), &headers);
        }
    });
    Ok((request, ClientCapabilities { options: wishes, version, upgrade }))
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
