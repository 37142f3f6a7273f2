//! A connection whose protocol changed: WebSocket and its like.
//!
//! Copies in both directions until both sides have ended, and keeps the client's permit as long. Does not interpret what
//! it copies.

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
        // Either side ends the tunnel by closing its connection; the error has no receiver.
        if let (Ok(client_io), Ok(server_io)) = tokio::join!(upgrade, server) {
            let (mut client_io, mut server_io) = (TokioIo::new(client_io), TokioIo::new(server_io));
            let _ = tokio::io::copy_bidirectional(&mut client_io, &mut server_io).await;
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
