//! A connection whose protocol changed: WebSocket and its like.
//!
//! Owns the copying, both ways, until both sides have ended, and keeps the client's place as long. Knows nothing of what is said.

use http::{Response, StatusCode, header, response};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::frontend::ClientContext;
use crate::http::{BoxBody, full_body, hop_by_hop};

/// The reply that changes the protocol, and behind it the copying.
pub fn switch_protocols(
    mut head: response::Parts,
    body: Incoming,
    upgrade: OnUpgrade,
    client: ClientContext,
) -> Response<BoxBody> {
    let protocol = head.headers.get(header::UPGRADE).cloned();
    let mut reply = Response::from_parts(head.clone(), body);
    // The server's half of the connection travels in the reply's extensions.
    *reply.extensions_mut() = std::mem::take(&mut head.extensions);
    let server = hyper::upgrade::on(&mut reply);
    tokio::spawn(async move {
        // Whoever hangs up before the change, or breaks off after it, ends the tunnel; nobody is left to be told.
        if let (Ok(near), Ok(far)) = tokio::join!(upgrade, server) {
            let (mut near, mut far) = (TokioIo::new(near), TokioIo::new(far));
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        }
        drop(client);
    });
    hop_by_hop::strip(&mut head.headers);
    hop_by_hop::set_connection_options(
        &mut head.headers,
        &hop_by_hop::ConnectionOptions { upgrade: protocol, trailers: false },
    );
    let mut reply = Response::from_parts(head, full_body(""));
    *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    reply
}
