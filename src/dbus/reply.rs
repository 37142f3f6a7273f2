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

use super::consent;
use super::credential;
use super::denial::Denial;
use super::desk::{Call, Desk};
use super::line::{self, Answer, Line};
use super::member::{Gives, RELOAD};
use super::property::{Property, all_of};
use super::value::{self, Named};
use crate::protocol::{GetBalance, GetInfo, Method};

/// A call whose answer is to come.
#[derive(Debug)]
pub struct Awaited {
    /// Whose answer it is; two where one call asks twice.
    pub call: Arc<Call>,
    /// What becomes of it.
    pub kind: Kind,
}

/// What becomes of an answer.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// The answer of a method.
    Method(Gives),
    /// Done, or polkit is asked.
    Reload,
    /// The value of a property.
    Property(&'static Property),
    /// The first part of all properties.
    SomeProperties,
    /// The last part; left out where the caller may not know it.
    OtherProperties,
}

/// Answers in the order of the calls, until there are no more or the service hangs up.
pub async fn replies(desk: Arc<Desk>, inbound: OwnedReadHalf, mut awaiting: mpsc::Receiver<Awaited>) {
    let mut inbound = BufReader::new(inbound);
    let mut buffer = Vec::new();
    let mut half: Option<Answer> = None;
    // Questions to polkit end with the client.
    let mut questions = JoinSet::new();
    while let Some(answer) = line::next(&mut inbound, &mut buffer).await {
        let Some(Awaited { call, kind }) = awaiting.recv().await else { break };
        match kind {
            Kind::SomeProperties => half = Some(answer),
            Kind::OtherProperties => all_properties(&desk, &call, half.take(), answer).await,
            Kind::Reload if is_denied(&answer) => {
                while questions.try_join_next().is_some() {}
                if questions.is_empty() {
                    questions.spawn(reload_by_consent(Arc::clone(&desk), call));
                } else {
                    desk.deny(&call.message, &Denial::busy("a reload of yours awaits polkit already")).await;
                }
            }
            Kind::Reload => whole(&desk, &call, Gives::Nothing, answer).await,
            Kind::Method(gives) => whole(&desk, &call, gives, answer).await,
            Kind::Property(property) => one_property(&desk, &call, property, answer).await,
        }
    }
    awaiting.close();
    while let Some(Awaited { call, kind }) = awaiting.recv().await {
        if !matches!(kind, Kind::SomeProperties) {
            desk.deny(&call.message, &Denial::gone()).await;
        }
    }
}

async fn whole(desk: &Desk, call: &Call, gives: Gives, answer: Answer) {
    let mut given = match answer {
        Ok(given) => given,
        Err(denial) => return desk.deny(&call.message, &denial).await,
    };
    match gives {
        Gives::Nothing => desk.answer(&call.message, &()).await,
        Gives::Whole => desk.answer(&call.message, &value::named(given)).await,
        Gives::Text(field) => match given.remove(field) {
            Some(Value::String(text)) => desk.answer(&call.message, &text).await,
            _ => desk.deny(&call.message, &Denial::gone()).await,
        },
        Gives::Object(field) => match given.remove(field) {
            Some(Value::Object(object)) => desk.answer(&call.message, &value::named(object)).await,
            _ => desk.deny(&call.message, &Denial::gone()).await,
        },
        Gives::List(field) => match given.remove(field) {
            Some(Value::Array(list)) => desk.answer_rows(&call.message, list).await,
            _ => desk.deny(&call.message, &Denial::gone()).await,
        },
    }
}

async fn one_property(desk: &Desk, call: &Call, property: &Property, answer: Answer) {
    match answer.map(|mut given| property.value(&mut given)) {
        Ok(Some(value)) => desk.answer(&call.message, &value).await,
        Ok(None) => desk.deny(&call.message, &Denial::unknown("Property", property.name)).await,
        Err(denial) => desk.deny(&call.message, &denial).await,
    }
}

async fn all_properties(desk: &Desk, call: &Call, info: Option<Answer>, balance: Answer) {
    match info.unwrap_or_else(|| Ok(Map::new())) {
        Ok(info) => {
            let mut all: Named = all_of(GetInfo::NAME, info);
            all.extend(all_of(GetBalance::NAME, balance.unwrap_or_default()));
            desk.answer(&call.message, &all).await;
        }
        Err(denial) => desk.deny(&call.message, &denial).await,
    }
}

fn is_denied(answer: &Answer) -> bool {
    answer.as_ref().is_err_and(Denial::is_about_access)
}

/// The caller is no administrator by itself; polkit may say that it is for this.
async fn reload_by_consent(desk: Arc<Desk>, call: Arc<Call>) {
    let header = call.message.header();
    let interactive = header.primary().flags().contains(Flags::ALLOW_INTERACTIVE_AUTH);
    let Some(caller) = header.sender() else { return };
    if let Err(why) = consent::ask(&desk.bus, caller.as_str(), interactive).await {
        return desk.deny(&call.message, &Denial::unauthorized(&why)).await;
    }
    let own = desk.usher.bring(credential::own(), None).and_then(Line::over);
    let answer = match own {
        Ok(mut own) => own.ask(RELOAD).await,
        Err(_) => Err(Denial::gone()),
    };
    whole(&desk, &call, Gives::Nothing, answer).await;
}
