//! One client on the bus: its calls, in order, over one connection to the service, and the replies.
//!
//! Owns that connection from the query of the client's credentials until the client leaves the bus. When it
//! ends, the service abandons the client's open spans, as for any connection. The service replies in order,
//! so each call that was sent and expects a reply has one [`PendingReply`], in the same order. No reply is
//! sent after `forward_replies` returns.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use serde_json::{Map, Value};
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use wattspan_client::protocol::{GetBalance, GetInfo, Method, MethodError};
use zbus::message::{Body, Flags};

use super::context::{DbusContext, PendingCall};
use super::credentials;
use super::dbus_error::DbusError;
use super::interface::{
    DbusMethod, DbusProperty, METHODS, RELOAD, ReplyShape, find_method, find_property, properties_of,
};
use super::json::{self, VariantDict};
use super::names::{INTERFACE, PROPERTIES_INTERFACE};
use super::polkit;
use super::service_connection::{self, ServiceConnection, ServiceReply};

/// Outstanding replies of one client. The sum with the calls in its queue is what the system bus allows.
const MAX_PENDING_REPLIES: usize = 64;

/// Serves the client with this unique name until the queue of its calls is closed.
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

/// Forwards calls and replies concurrently, so that a close that waits for its account does not block other
/// calls.
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
    // The remaining replies are forwarded, then the service closes the connection.
    calls.close();
    drop((outbound, pending));
    let _ = reply_task.await;
    while let Some(call) = calls.recv().await {
        context.reply_error(&call.message, &DbusError::no_reply()).await;
    }
}

/// The next call, or `None` at the end of the queue or if the service closed the connection.
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

/// Sends a call to the service, or replies with an error. `None` if the service closed the connection.
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

/// The request to the service, and how to convert each of its replies.
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
    // The reply decides whether polkit is asked, so Reload is never oneway.
    let oneway = !call.is_reply_expected() && method.method != RELOAD;
    let kinds = match () {
        () if oneway => Vec::new(),
        () if method.method == RELOAD => vec![ReplyKind::Reload],
        () => vec![ReplyKind::Method(method.reply)],
    };
    Ok((service_connection::encode_call(method.method, parameters, oneway), kinds))
}

/// Translates a call of `org.freedesktop.DBus.Properties`.
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

/// Whether a call is forwarded to the service. A call without an interface is, if the method name is known.
pub fn is_client_method(interface: Option<&str>, name: &str) -> bool {
    match interface {
        Some(INTERFACE | PROPERTIES_INTERFACE) => true,
        Some(_) => false,
        None => METHODS.iter().any(|method| method.name == name),
    }
}

#[derive(Debug)]
struct PendingReply {
    /// `GetAll` has two entries with the same call.
    call: Arc<PendingCall>,
    kind: ReplyKind,
}

/// How to convert a reply of the service.
#[derive(Debug, Clone, Copy)]
enum ReplyKind {
    Method(ReplyShape),
    /// If access is denied, polkit is asked.
    Reload,
    Property(&'static DbusProperty),
    /// The first part of the reply to `GetAll`.
    InfoProperties,
    /// The second part of the reply to `GetAll`; omitted if access is denied.
    BalanceProperties,
}

/// Forwards replies in the order of the calls, until the service closes the connection.
async fn forward_replies(
    context: Arc<DbusContext>,
    inbound: OwnedReadHalf,
    mut pending_replies: mpsc::Receiver<PendingReply>,
) {
    let mut inbound = BufReader::new(inbound);
    let mut buffer = Vec::new();
    let mut info: Option<ServiceReply> = None;
    // Pending polkit requests are cancelled when the client leaves.
    let mut polkit_tasks = JoinSet::new();
    while let Some(reply) = service_connection::read_reply(&mut inbound, &mut buffer).await {
        let Some(PendingReply { call, kind }) = pending_replies.recv().await else { break };
        match kind {
            ReplyKind::InfoProperties => info = Some(reply),
            ReplyKind::BalanceProperties => send_all_properties(&context, &call, info.take(), reply).await,
            ReplyKind::Reload if is_access_denied(&reply) => {
                while polkit_tasks.try_join_next().is_some() {}
                if polkit_tasks.is_empty() {
                    polkit_tasks.spawn(reload_with_polkit(Arc::clone(&context), call));
                } else {
                    context
                        .reply_error(
                            &call.message,
                            &DbusError::limits_exceeded("your previous reload still awaits polkit"),
                        )
                        .await;
                }
            }
            ReplyKind::Reload => send_reply(&context, &call, ReplyShape::Empty, reply).await,
            ReplyKind::Method(shape) => send_reply(&context, &call, shape, reply).await,
            ReplyKind::Property(property) => send_property(&context, &call, property, reply).await,
        }
    }
    pending_replies.close();
    while let Some(PendingReply { call, kind }) = pending_replies.recv().await {
        if !matches!(kind, ReplyKind::InfoProperties) {
            context.reply_error(&call.message, &DbusError::no_reply()).await;
        }
    }
}

async fn send_reply(context: &DbusContext, call: &PendingCall, shape: ReplyShape, reply: ServiceReply) {
    let mut fields = match reply {
        Ok(fields) => fields,
        Err(error) => return context.reply_error(&call.message, &error).await,
    };
    match shape {
        ReplyShape::Empty => context.reply(&call.message, &()).await,
        ReplyShape::Whole => context.reply(&call.message, &json::to_dict(fields)).await,
        ReplyShape::Text(field) => match fields.remove(field) {
            Some(Value::String(text)) => context.reply(&call.message, &text).await,
            _ => context.reply_error(&call.message, &DbusError::no_reply()).await,
        },
        ReplyShape::Object(field) => match fields.remove(field) {
            Some(Value::Object(object)) => context.reply(&call.message, &json::to_dict(object)).await,
            _ => context.reply_error(&call.message, &DbusError::no_reply()).await,
        },
        ReplyShape::List(field) => match fields.remove(field) {
            Some(Value::Array(list)) => context.reply_dicts(&call.message, list).await,
            _ => context.reply_error(&call.message, &DbusError::no_reply()).await,
        },
    }
}

async fn send_property(
    context: &DbusContext,
    call: &PendingCall,
    property: &DbusProperty,
    reply: ServiceReply,
) {
    match reply.map(|mut fields| property.value(&mut fields)) {
        Ok(Some(value)) => context.reply(&call.message, &value).await,
        Ok(None) => context.reply_error(&call.message, &DbusError::unknown("Property", property.name)).await,
        Err(error) => context.reply_error(&call.message, &error).await,
    }
}

async fn send_all_properties(
    context: &DbusContext,
    call: &PendingCall,
    info: Option<ServiceReply>,
    balance: ServiceReply,
) {
    match info.unwrap_or_else(|| Ok(Map::new())) {
        Ok(info) => {
            let mut all: VariantDict = properties_of(GetInfo::NAME, info);
            all.extend(properties_of(GetBalance::NAME, balance.unwrap_or_default()));
            context.reply(&call.message, &all).await;
        }
        Err(error) => context.reply_error(&call.message, &error).await,
    }
}

fn is_access_denied(reply: &ServiceReply) -> bool {
    reply.as_ref().is_err_and(DbusError::is_access_denied)
}

/// Reloads as the daemon if polkit authorizes the caller.
async fn reload_with_polkit(context: Arc<DbusContext>, call: Arc<PendingCall>) {
    let header = call.message.header();
    let interactive = header.primary().flags().contains(Flags::ALLOW_INTERACTIVE_AUTH);
    let Some(caller) = header.sender() else { return };
    if let Err(reason) = polkit::check_authorization(&context.bus, caller.as_str(), interactive).await {
        return context.reply_error(&call.message, &DbusError::unauthorized(&reason)).await;
    }
    let connection = context
        .connection_sender
        .connect(credentials::own_credentials(), None)
        .and_then(ServiceConnection::new);
    let reply = match connection {
        Ok(mut connection) => connection.call(RELOAD).await,
        Err(_) => Err(DbusError::no_reply()),
    };
    send_reply(&context, &call, ReplyShape::Empty, reply).await;
}
