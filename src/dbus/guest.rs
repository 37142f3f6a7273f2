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

use super::credential;
use super::denial::Denial;
use super::desk::{Call, Desk};
use super::line;
use super::member::{MEMBERS, Member, RELOAD, member};
use super::property::{Property, property};
use super::reply::{Awaited, Kind, replies};
use super::{INTERFACE, PROPERTIES_INTERFACE};
use crate::protocol::{GetBalance, GetInfo, Method, Refusal};

/// Calls of one client that may wait for their answers; with those that wait to be handled, what the system bus allows.
const AWAITED: usize = 64;

/// A client of this unique name, from its first call until no more can come.
pub async fn host(desk: Arc<Desk>, name: String, mut calls: mpsc::Receiver<Call>) {
    let admitted = match credential::watch(&desk.bus, &name).await {
        Ok(()) => admit(&desk, &name).await,
        Err(denial) => Err(denial),
    };
    match admitted {
        Ok(stream) => serve(&desk, stream, &mut calls).await,
        Err(denial) => {
            calls.close();
            while let Some(call) = calls.recv().await {
                desk.deny(&call.message, &denial).await;
            }
        }
    }
    credential::unwatch(&desk.bus, &name).await;
}

async fn admit(desk: &Desk, name: &str) -> Result<UnixStream, Denial> {
    let (credentials, pid) = credential::of(&desk.bus, name).await?;
    let stream = desk.usher.bring(credentials, pid).and_then(line::connected);
    stream.map_err(|_| Denial::gone())
}

/// Calls go out and answers come in side by side, so that a close that waits for its account holds up no other call.
async fn serve(desk: &Arc<Desk>, stream: UnixStream, calls: &mut mpsc::Receiver<Call>) {
    let (inbound, mut outbound) = stream.into_split();
    let (awaited, awaiting) = mpsc::channel(AWAITED);
    let replying = tokio::spawn(replies(Arc::clone(desk), inbound, awaiting));
    while let Some(call) = next(calls, &awaited).await {
        if pass_on(desk, call, &mut outbound, &awaited).await.is_none() {
            break;
        }
    }
    // No more calls come: what was asked is still answered, then the service hangs up.
    calls.close();
    drop((outbound, awaited));
    let _ = replying.await;
    while let Some(call) = calls.recv().await {
        desk.deny(&call.message, &Denial::gone()).await;
    }
}

/// The next call; `None` where none can come, or where the service has hung up.
async fn next(calls: &mut mpsc::Receiver<Call>, awaited: &mpsc::Sender<Awaited>) -> Option<Call> {
    let mut hung_up = pin!(awaited.closed());
    std::future::poll_fn(|context| match calls.poll_recv(context) {
        Poll::Ready(call) => Poll::Ready(call),
        Poll::Pending => hung_up.as_mut().poll(context).map(|()| None),
    })
    .await
}

/// Sends a call to the service, or answers what is wrong with it; `None` where the service has hung up.
async fn pass_on(
    desk: &Desk,
    call: Call,
    outbound: &mut OwnedWriteHalf,
    awaited: &mpsc::Sender<Awaited>,
) -> Option<()> {
    let (bytes, kinds) = match words(&call, desk.most_bytes) {
        Ok(words) => words,
        Err(denial) => {
            desk.deny(&call.message, &denial).await;
            return Some(());
        }
    };
    let call = Arc::new(call);
    for kind in kinds {
        awaited.send(Awaited { call: Arc::clone(&call), kind }).await.ok()?;
    }
    outbound.write_all(&bytes).await.ok()
}

/// What is asked of the service, and what becomes of each answer.
fn words(call: &Call, most_bytes: usize) -> Result<(Vec<u8>, Vec<Kind>), Denial> {
    let header = call.message.header();
    let body = call.message.body();
    let name = header.member().map(|name| name.as_str()).unwrap_or_default();
    let (bytes, kinds) = match header.interface().map(|interface| interface.as_str()) {
        Some(PROPERTIES_INTERFACE) => properties(name, &body)?,
        Some(INTERFACE) | None => method(call, method_named(name)?, &body)?,
        Some(other) => return Err(Denial::unknown("Interface", other)),
    };
    if bytes.len() > most_bytes {
        let reason = format!("is longer than {most_bytes} bytes");
        return Err(Denial::from(&Refusal::InvalidValue { field: "message".into(), reason }));
    }
    Ok((bytes, kinds))
}

fn method_named(name: &str) -> Result<&'static Member, Denial> {
    member(name).ok_or_else(|| Denial::unknown("Method", name))
}

fn method(call: &Call, member: &'static Member, body: &Body) -> Result<(Vec<u8>, Vec<Kind>), Denial> {
    let parameters = member.parameters(body)?;
    // Whether a reload may be done is known by the answer, so there is one even where nobody waits for it.
    let oneway = !call.wants_answer() && member.method != RELOAD;
    let kinds = match () {
        () if oneway => Vec::new(),
        () if member.method == RELOAD => vec![Kind::Reload],
        () => vec![Kind::Method(member.gives)],
    };
    Ok((line::call(member.method, parameters, oneway), kinds))
}

/// `org.freedesktop.DBus.Properties`.
fn properties(name: &str, body: &Body) -> Result<(Vec<u8>, Vec<Kind>), Denial> {
    let strings = |_| Denial::invalid_arguments(format!("{name} takes an interface and a property"));
    let one = |property: &'static Property| {
        (line::call(property.method, Map::<String, Value>::new(), false), vec![Kind::Property(property)])
    };
    match name {
        "Get" => {
            let (interface, wanted): (&str, &str) = body.deserialize().map_err(strings)?;
            known_interface(interface)?;
            property(wanted).map(one).ok_or_else(|| Denial::unknown("Property", wanted))
        }
        "GetAll" => {
            let interface: &str = body.deserialize().map_err(strings)?;
            known_interface(interface)?;
            let mut bytes = line::call(GetInfo::NAME, Map::new(), false);
            bytes.extend(line::call(GetBalance::NAME, Map::new(), false));
            Ok((bytes, vec![Kind::SomeProperties, Kind::OtherProperties]))
        }
        "Set" => Err(Denial::read_only()),
        _ => Err(Denial::unknown("Method", name)),
    }
}

fn known_interface(interface: &str) -> Result<(), Denial> {
    match interface {
        INTERFACE | "" => Ok(()),
        other => Err(Denial::unknown("Interface", other)),
    }
}

/// Whether this member of the meter's interface, or of any where none is named, is a guest's to ask.
pub fn is_for_guests(interface: Option<&str>, name: &str) -> bool {
    match interface {
        Some(INTERFACE | PROPERTIES_INTERFACE) => true,
        Some(_) => false,
        None => MEMBERS.iter().any(|member| member.name == name),
    }
}
