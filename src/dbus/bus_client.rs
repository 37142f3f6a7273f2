//! One client on the bus: its calls, in order, over one ordinary connection to the service.
//!
//! Owns that connection, from the bus's word on who the client is to the client's leaving the bus. Whatever ends it, the
//! service sees a connection that ends, and does what it does then: open spans are abandoned. Invariant: each call that
//! went to the service has one [`PendingReply`], in the same order, unless nobody waits for its answer.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use serde_json::{Map, Value};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::mpsc;
use zbus::message::Body;

use super::context::{DbusContext, PendingCall};
use super::credentials;
use super::dbus_error::DbusError;
use super::methods::{DbusMethod, METHODS, RELOAD, find_method};
use super::properties::{DbusProperty, find_property};
use super::reply::{PendingReply, ReplyKind, forward_replies};
use super::service_connection;
use super::{INTERFACE, PROPERTIES_INTERFACE};
use crate::protocol::{GetBalance, GetInfo, Method, MethodError};

/// Calls of one client that may wait for their answers; with those that wait to be handled, what the system bus allows.
const MAX_PENDING_REPLIES: usize = 64;

/// A client of this unique name, from its first call until no more can come.
pub async fn serve_client(context: Arc<DbusContext>, name: String, mut calls: mpsc::Receiver<PendingCall>) {
    let connected = match credentials::watch_name(&context.bus, &name).await {
        Ok(()) => connect_to_service(&context, &name).await,
        Err(error) => Err(error),
    };
    match connected {
        Ok(stream) => forward_calls(&context, stream, &mut calls).await,
        Err(error) => {
            calls.close();
            while let Some(call) = calls.recv().await {
                context.reply_error(&call.message, &error).await;
            }
        }
    }
    credentials::unwatch_name(&context.bus, &name).await;
}

async fn connect_to_service(context: &DbusContext, name: &str) -> Result<UnixStream, DbusError> {
    let (credentials, pid) = credentials::query_credentials(&context.bus, name).await?;
    let stream = context.connection_sender.connect(credentials, pid).and_then(service_connection::into_tokio);
    stream.map_err(|_| DbusError::no_reply())
}

/// Calls go out and answers come in side by side, so that a close that waits for its account holds up no other call.
async fn forward_calls(
    context: &Arc<DbusContext>,
    stream: UnixStream,
    calls: &mut mpsc::Receiver<PendingCall>,
) {
    let (inbound, mut outbound) = stream.into_split();
    let (pending, pending_replies) = mpsc::channel(MAX_PENDING_REPLIES);
    let reply_task = tokio::spawn(forward_replies(Arc::clone(context), inbound, pending_replies));
    while let Some(call) = next_call(calls, &pending).await {
        if forward_call(context, call, &mut outbound, &pending).await.is_none() {
            break;
        }
    }
    // No more calls come: what was asked is still answered, then the service hangs up.
    calls.close();
    drop((outbound, pending));
    let _ = reply_task.await;
    while let Some(call) = calls.recv().await {
        context.reply_error(&call.message, &DbusError::no_reply()).await;
    }
}

/// The next call; `None` where none can come, or where the service has hung up.
async fn next_call(
    calls: &mut mpsc::Receiver<PendingCall>,
    pending: &mpsc::Sender<PendingReply>,
) -> Option<PendingCall> {
    let mut closed = pin!(pending.closed());
    std::future::poll_fn(|cx| match calls.poll_recv(cx) {
        Poll::Ready(call) => Poll::Ready(call),
        Poll::Pending => closed.as_mut().poll(cx).map(|()| None),
    })
    .await
}

/// Sends a call to the service, or answers what is wrong with it; `None` where the service has hung up.
async fn forward_call(
    context: &DbusContext,
    call: PendingCall,
    outbound: &mut OwnedWriteHalf,
    pending: &mpsc::Sender<PendingReply>,
) -> Option<()> {
    let (bytes, kinds) = match translate_call(&call, context.max_message_bytes) {
        Ok(translated) => translated,
        Err(error) => {
            context.reply_error(&call.message, &error).await;
            return Some(());
        }
    };
    let call = Arc::new(call);
    for kind in kinds {
        pending.send(PendingReply { call: Arc::clone(&call), kind }).await.ok()?;
    }
    outbound.write_all(&bytes).await.ok()
}

/// What is asked of the service, and what becomes of each answer.
fn translate_call(call: &PendingCall, max_bytes: usize) -> Result<(Vec<u8>, Vec<ReplyKind>), DbusError> {
    let header = call.message.header();
    let body = call.message.body();
    let name = header.member().map(|name| name.as_str()).unwrap_or_default();
    let (bytes, kinds) = match header.interface().map(|interface| interface.as_str()) {
        Some(PROPERTIES_INTERFACE) => translate_property_call(name, &body)?,
        Some(INTERFACE) | None => translate_method_call(call, require_method(name)?, &body)?,
        Some(other) => return Err(DbusError::unknown("Interface", other)),
    };
    if bytes.len() > max_bytes {
        let reason = format!("is longer than {max_bytes} bytes");
        return Err(DbusError::from(&MethodError::InvalidValue { field: "message".into(), reason }));
    }
    Ok((bytes, kinds))
}

fn require_method(name: &str) -> Result<&'static DbusMethod, DbusError> {
    find_method(name).ok_or_else(|| DbusError::unknown("Method", name))
}

fn translate_method_call(
    call: &PendingCall,
    method: &'static DbusMethod,
    body: &Body,
) -> Result<(Vec<u8>, Vec<ReplyKind>), DbusError> {
    let parameters = method.parse_parameters(body)?;
    // Whether a reload may be done is known by the answer, so there is one even where nobody waits for it.
    let oneway = !call.is_reply_expected() && method.method != RELOAD;
    let kinds = match () {
        () if oneway => Vec::new(),
        () if method.method == RELOAD => vec![ReplyKind::Reload],
        () => vec![ReplyKind::Method(method.reply)],
    };
    Ok((service_connection::encode_call(method.method, parameters, oneway), kinds))
}

/// `org.freedesktop.DBus.Properties`.
fn translate_property_call(name: &str, body: &Body) -> Result<(Vec<u8>, Vec<ReplyKind>), DbusError> {
    let strings = |_| DbusError::invalid_args(format!("{name} takes an interface and a property"));
    let one = |property: &'static DbusProperty| {
        (
            service_connection::encode_call(property.method, Map::<String, Value>::new(), false),
            vec![ReplyKind::Property(property)],
        )
    };
    match name {
        "Get" => {
            let (interface, property_name): (&str, &str) = body.deserialize().map_err(strings)?;
            check_interface(interface)?;
            find_property(property_name).map(one).ok_or_else(|| DbusError::unknown("Property", property_name))
        }
        "GetAll" => {
            let interface: &str = body.deserialize().map_err(strings)?;
            check_interface(interface)?;
            let mut bytes = service_connection::encode_call(GetInfo::NAME, Map::new(), false);
            bytes.extend(service_connection::encode_call(GetBalance::NAME, Map::new(), false));
            Ok((bytes, vec![ReplyKind::InfoProperties, ReplyKind::BalanceProperties]))
        }
        "Set" => Err(DbusError::read_only()),
        _ => Err(DbusError::unknown("Method", name)),
    }
}

fn check_interface(interface: &str) -> Result<(), DbusError> {
    match interface {
        INTERFACE | "" => Ok(()),
        other => Err(DbusError::unknown("Interface", other)),
    }
}

/// Whether this member of the meter's interface, or of any where none is named, is forwarded to the service.
pub fn is_client_method(interface: Option<&str>, name: &str) -> bool {
    match interface {
        Some(INTERFACE | PROPERTIES_INTERFACE) => true,
        Some(_) => false,
        None => METHODS.iter().any(|method| method.name == name),
    }
}
