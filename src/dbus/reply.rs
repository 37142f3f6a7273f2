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

use super::context::{DBusContext, PendingCall};
use super::credentials;
use super::dbus_error::DBusError;
use super::json::{self, VariantDict};
use super::methods::{RELOAD, ReplyShape};
use super::polkit;
use super::properties::{DBusProperty, properties_of};
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
    Property(&'static DBusProperty),
    /// The first part of all properties.
    InfoProperties,
    /// The last part; left out where the caller may not know it.
    BalanceProperties,
}

/// Answers in the order of the calls, until there are no more or the service hangs up.
pub async fn forward_replies(
    desk: Arc<DBusContext>,
    inbound: OwnedReadHalf,
    mut awaiting: mpsc::Receiver<PendingReply>,
) {
    let mut inbound = BufReader::new(inbound);
    let mut buffer = Vec::new();
    let mut half: Option<ServiceReply> = None;
    // Questions to polkit end with the client.
    let mut questions = JoinSet::new();
    while let Some(answer) = service_connection::read_reply(&mut inbound, &mut buffer).await {
        let Some(PendingReply { call, kind }) = awaiting.recv().await else { break };
        match kind {
            ReplyKind::InfoProperties => half = Some(answer),
            ReplyKind::BalanceProperties => send_all_properties(&desk, &call, half.take(), answer).await,
            ReplyKind::Reload if is_access_denied(&answer) => {
                while questions.try_join_next().is_some() {}
                if questions.is_empty() {
                    questions.spawn(reload_with_polkit(Arc::clone(&desk), call));
                } else {
                    desk.reply_error(
                        &call.message,
                        &DBusError::limits_exceeded("a reload of yours awaits polkit already"),
                    )
                    .await;
                }
            }
            ReplyKind::Reload => send_reply(&desk, &call, ReplyShape::Empty, answer).await,
            ReplyKind::Method(gives) => send_reply(&desk, &call, gives, answer).await,
            ReplyKind::Property(property) => send_property(&desk, &call, property, answer).await,
        }
    }
    awaiting.close();
    while let Some(PendingReply { call, kind }) = awaiting.recv().await {
        if !matches!(kind, ReplyKind::InfoProperties) {
            desk.reply_error(&call.message, &DBusError::no_reply()).await;
        }
    }
}

async fn send_reply(desk: &DBusContext, call: &PendingCall, gives: ReplyShape, answer: ServiceReply) {
    let mut given = match answer {
        Ok(given) => given,
        Err(denial) => return desk.reply_error(&call.message, &denial).await,
    };
    match gives {
        ReplyShape::Empty => desk.reply(&call.message, &()).await,
        ReplyShape::Whole => desk.reply(&call.message, &json::to_dict(given)).await,
        ReplyShape::Text(field) => match given.remove(field) {
            Some(Value::String(text)) => desk.reply(&call.message, &text).await,
            _ => desk.reply_error(&call.message, &DBusError::no_reply()).await,
        },
        ReplyShape::Object(field) => match given.remove(field) {
            Some(Value::Object(object)) => desk.reply(&call.message, &json::to_dict(object)).await,
            _ => desk.reply_error(&call.message, &DBusError::no_reply()).await,
        },
        ReplyShape::List(field) => match given.remove(field) {
            Some(Value::Array(list)) => desk.reply_dicts(&call.message, list).await,
            _ => desk.reply_error(&call.message, &DBusError::no_reply()).await,
        },
    }
}

async fn send_property(
    desk: &DBusContext,
    call: &PendingCall,
    property: &DBusProperty,
    answer: ServiceReply,
) {
    match answer.map(|mut given| property.value(&mut given)) {
        Ok(Some(value)) => desk.reply(&call.message, &value).await,
        Ok(None) => desk.reply_error(&call.message, &DBusError::unknown("Property", property.name)).await,
        Err(denial) => desk.reply_error(&call.message, &denial).await,
    }
}

async fn send_all_properties(
    desk: &DBusContext,
    call: &PendingCall,
    info: Option<ServiceReply>,
    balance: ServiceReply,
) {
    match info.unwrap_or_else(|| Ok(Map::new())) {
        Ok(info) => {
            let mut all: VariantDict = properties_of(GetInfo::NAME, info);
            all.extend(properties_of(GetBalance::NAME, balance.unwrap_or_default()));
            desk.reply(&call.message, &all).await;
        }
        Err(denial) => desk.reply_error(&call.message, &denial).await,
    }
}

fn is_access_denied(answer: &ServiceReply) -> bool {
    answer.as_ref().is_err_and(DBusError::is_access_denied)
}

/// The caller is no administrator by itself; polkit may say that it is for this.
async fn reload_with_polkit(desk: Arc<DBusContext>, call: Arc<PendingCall>) {
    let header = call.message.header();
    let interactive = header.primary().flags().contains(Flags::ALLOW_INTERACTIVE_AUTH);
    let Some(caller) = header.sender() else { return };
    if let Err(why) = polkit::check_authorization(&desk.bus, caller.as_str(), interactive).await {
        return desk.reply_error(&call.message, &DBusError::unauthorized(&why)).await;
    }
    let own =
        desk.connection_sender.connect(credentials::own_credentials(), None).and_then(ServiceConnection::new);
    let answer = match own {
        Ok(mut own) => own.call(RELOAD).await,
        Err(_) => Err(DBusError::no_reply()),
    };
    send_reply(&desk, &call, ReplyShape::Empty, answer).await;
}
