//! The service's answers on their way back to a client on the bus.
//!
//! Owns the pairing of answers with the calls that await them: the service answers in order. A reload that the service
//! denies to the caller is put to polkit; with its consent the daemon asks as itself. Invariant: after this has ended, no
//! answer of this client is sent any more.

use std::sync::Arc;

use serde_json::{Map, Value};
use tokio::io::BufReader;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use zbus::message::Flags;

use super::context::{DbusContext, PendingCall};
use super::credentials;
use super::dbus_error::DbusError;
use super::json::{self, VariantDict};
use super::methods::{RELOAD, ReplyShape};
use super::polkit;
use super::properties::{DbusProperty, properties_of};
use super::service_connection::{self, ServiceConnection, ServiceReply};
use crate::protocol::{GetBalance, GetInfo, Method};

/// A call whose answer is to come.
#[derive(Debug)]
pub struct PendingReply {
    /// Whose answer it is; two where one call asks twice.
    pub call: Arc<PendingCall>,
    /// What becomes of it.
    pub kind: ReplyKind,
}

/// What becomes of an answer.
#[derive(Debug, Clone, Copy)]
pub enum ReplyKind {
    /// The answer of a method.
    Method(ReplyShape),
    /// Done, or polkit is asked.
    Reload,
    /// The value of a property.
    Property(&'static DbusProperty),
    /// The first part of all properties.
    InfoProperties,
    /// The last part; left out where the caller may not know it.
    BalanceProperties,
}

/// Answers in the order of the calls, until there are no more or the service hangs up.
pub async fn forward_replies(
    context: Arc<DbusContext>,
    inbound: OwnedReadHalf,
    mut pending_replies: mpsc::Receiver<PendingReply>,
) {
    let mut inbound = BufReader::new(inbound);
    let mut buffer = Vec::new();
    let mut info: Option<ServiceReply> = None;
    // Questions to polkit end with the client.
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
                            &DbusError::limits_exceeded("a reload of yours awaits polkit already"),
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

/// The caller is no administrator by itself; polkit may say that it is for this.
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
