//! One client on the bus: its calls, in order, over one ordinary connection to the service.
//!
//! Owns that connection, from the bus's word on who the client is to the client's leaving the bus. Whatever ends it, the
//! service sees a connection that ends, and does what it does then: open spans are abandoned. Invariant: each call that
//! went to the service has one [`Awaited`], in the same order, unless nobody waits for its answer.

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

use super::context::{DBusContext, PendingCall};
use super::credentials;
use super::dbus_error::DBusError;
use super::methods::{DBusMethod, MEMBERS, RELOAD, find_method};
use super::properties::{DBusProperty, find_property};
use super::reply::{PendingReply, ReplyKind, forward_replies};
use super::service_connection;
use super::{INTERFACE, PROPERTIES_INTERFACE};
use crate::protocol::{GetBalance, GetInfo, Method, MethodError};

/// Calls of one client that may wait for their answers; with those that wait to be handled, what the system bus allows.
const MAX_PENDING_REPLIES: usize = 64;

/// A client of this unique name, from its first call until no more can come.
pub async fn serve_client(desk: Arc<DBusContext>, name: String, mut calls: mpsc::Receiver<PendingCall>) {
    let admitted = match credentials::watch_name(&desk.bus, &name).await {
        Ok(()) => connect_to_service(&desk, &name).await,
        Err(denial) => Err(denial),
    };
    match admitted {
        Ok(stream) => forward_calls(&desk, stream, &mut calls).await,
        Err(denial) => {
            calls.close();
            while let Some(call) = calls.recv().await {
                desk.reply_error(&call.message, &denial).await;
            }
        }
    }
    credentials::unwatch_name(&desk.bus, &name).await;
}

async fn connect_to_service(desk: &DBusContext, name: &str) -> Result<UnixStream, DBusError> {
    let (credentials, pid) = credentials::query_credentials(&desk.bus, name).await?;
    let stream = desk.connection_sender.connect(credentials, pid).and_then(service_connection::into_tokio);
    stream.map_err(|_| DBusError::no_reply())
}

/// Calls go out and answers come in side by side, so that a close that waits for its account holds up no other call.
async fn forward_calls(desk: &Arc<DBusContext>, stream: UnixStream, calls: &mut mpsc::Receiver<PendingCall>) {
    let (inbound, mut outbound) = stream.into_split();
    let (awaited, awaiting) = mpsc::channel(MAX_PENDING_REPLIES);
    let replying = tokio::spawn(forward_replies(Arc::clone(desk), inbound, awaiting));
    while let Some(call) = next_call(calls, &awaited).await {
        if forward_call(desk, call, &mut outbound, &awaited).await.is_none() {
            break;
        }
    }
    // No more calls come: what was asked is still answered, then the service hangs up.
    calls.close();
    drop((outbound, awaited));
    let _ = replying.await;
    while let Some(call) = calls.recv().await {
        desk.reply_error(&call.message, &DBusError::no_reply()).await;
    }
}

/// The next call; `None` where none can come, or where the service has hung up.
async fn next_call(
    calls: &mut mpsc::Receiver<PendingCall>,
    awaited: &mpsc::Sender<PendingReply>,
) -> Option<PendingCall> {
    let mut hung_up = pin!(awaited.closed());
    std::future::poll_fn(|context| match calls.poll_recv(context) {
        Poll::Ready(call) => Poll::Ready(call),
        Poll::Pending => hung_up.as_mut().poll(context).map(|()| None),
    })
    .await
}

/// Sends a call to the service, or answers what is wrong with it; `None` where the service has hung up.
async fn forward_call(
    desk: &DBusContext,
    call: PendingCall,
    outbound: &mut OwnedWriteHalf,
    awaited: &mpsc::Sender<PendingReply>,
) -> Option<()> {
    let (bytes, kinds) = match translate_call(&call, desk.max_message_bytes) {
        Ok(words) => words,
        Err(denial) => {
            desk.reply_error(&call.message, &denial).await;
            return Some(());
        }
    };
    let call = Arc::new(call);
    for kind in kinds {
        awaited.send(PendingReply { call: Arc::clone(&call), kind }).await.ok()?;
    }
    outbound.write_all(&bytes).await.ok()
}

/// What is asked of the service, and what becomes of each answer.
fn translate_call(call: &PendingCall, most_bytes: usize) -> Result<(Vec<u8>, Vec<ReplyKind>), DBusError> {
    let header = call.message.header();
    let body = call.message.body();
    let name = header.member().map(|name| name.as_str()).unwrap_or_default();
    let (bytes, kinds) = match header.interface().map(|interface| interface.as_str()) {
        Some(PROPERTIES_INTERFACE) => translate_property_call(name, &body)?,
        Some(INTERFACE) | None => translate_method_call(call, require_method(name)?, &body)?,
        Some(other) => return Err(DBusError::unknown("Interface", other)),
    };
    if bytes.len() > most_bytes {
        let reason = format!("is longer than {most_bytes} bytes");
        return Err(DBusError::from(&MethodError::InvalidValue { field: "message".into(), reason }));
    }
    Ok((bytes, kinds))
}

fn require_method(name: &str) -> Result<&'static DBusMethod, DBusError> {
    find_method(name).ok_or_else(|| DBusError::unknown("Method", name))
}

fn translate_method_call(
    call: &PendingCall,
    member: &'static DBusMethod,
    body: &Body,
) -> Result<(Vec<u8>, Vec<ReplyKind>), DBusError> {
    let parameters = member.parse_parameters(body)?;
    // Whether a reload may be done is known by the answer, so there is one even where nobody waits for it.
    let oneway = !call.is_reply_expected() && member.method != RELOAD;
    let kinds = match () {
        () if oneway => Vec::new(),
        () if member.method == RELOAD => vec![ReplyKind::Reload],
        () => vec![ReplyKind::Method(member.reply)],
    };
    Ok((service_connection::encode_call(member.method, parameters, oneway), kinds))
}

/// `org.freedesktop.DBus.Properties`.
fn translate_property_call(name: &str, body: &Body) -> Result<(Vec<u8>, Vec<ReplyKind>), DBusError> {
    let strings = |_| DBusError::invalid_args(format!("{name} takes an interface and a property"));
    let one = |property: &'static DBusProperty| {
        (
            service_connection::encode_call(property.method, Map::<String, Value>::new(), false),
            vec![ReplyKind::Property(property)],
        )
    };
    match name {
        "Get" => {
            let (interface, wanted): (&str, &str) = body.deserialize().map_err(strings)?;
            check_interface(interface)?;
            find_property(wanted).map(one).ok_or_else(|| DBusError::unknown("Property", wanted))
        }
        "GetAll" => {
            let interface: &str = body.deserialize().map_err(strings)?;
            check_interface(interface)?;
            let mut bytes = service_connection::encode_call(GetInfo::NAME, Map::new(), false);
            bytes.extend(service_connection::encode_call(GetBalance::NAME, Map::new(), false));
            Ok((bytes, vec![ReplyKind::InfoProperties, ReplyKind::BalanceProperties]))
        }
        "Set" => Err(DBusError::read_only()),
        _ => Err(DBusError::unknown("Method", name)),
    }
}

fn check_interface(interface: &str) -> Result<(), DBusError> {
    match interface {
        INTERFACE | "" => Ok(()),
        other => Err(DBusError::unknown("Interface", other)),
    }
}

/// Whether this member of the meter's interface, or of any where none is named, is a guest's to ask.
pub fn is_client_method(interface: Option<&str>, name: &str) -> bool {
    match interface {
        Some(INTERFACE | PROPERTIES_INTERFACE) => true,
        Some(_) => false,
        None => MEMBERS.iter().any(|member| member.name == name),
    }
}
