//! Who a client is, as the bus says; and whether it is still there.
//!
//! Owns the questions to the bus about a unique name. The watch on the name comes before the question, so that a client
//! that leaves in between is either unknown to the bus or its leaving is told. Every failure is a denial: whoever leaves
//! before it is known is nobody (CVE-2021-3560).

use std::time::Duration;

use zbus::fdo::ConnectionCredentials;
use zbus::{Connection, Message};

use super::dbus_error::DbusError;
use crate::unix_socket::PeerCredentials;

/// How long the bus may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// A group that nobody is in: what the C library gives for no group.
const NO_GROUP: u32 = u32::MAX;

/// The bus itself.
pub const DBUS_SERVICE: &str = "org.freedesktop.DBus";

/// The signal that tells of a name that has got or lost its owner.
pub const NAME_OWNER_CHANGED: &str = "NameOwnerChanged";

/// The user, the groups and the process of whoever has this unique name; what the bus does not tell of the process costs
/// only the part of a share that would be its.
pub async fn query_credentials(
    bus: &Connection,
    name: &str,
) -> Result<(PeerCredentials, Option<u32>), DbusError> {
    let reply = call_bus(bus, "GetConnectionCredentials", name).await?;
    let body = reply.body();
    let credentials: ConnectionCredentials =
        body.deserialize().map_err(|error| DbusError::unknown_caller(&error.to_string()))?;
    let uid = credentials.unix_user_id().ok_or_else(|| DbusError::unknown_caller("it names no user"))?;
    let pid = credentials.process_id();
    // A bus that names no groups gives the least access that the user alone has.
    let groups = credentials.into_unix_group_ids().unwrap_or_default();
    Ok((PeerCredentials { uid, gid: NO_GROUP, groups }, pid))
}

/// The daemon's own.
pub fn own_credentials() -> PeerCredentials {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    PeerCredentials { uid, gid, groups: Vec::new() }
}

/// Asks to be told when this name goes.
pub async fn watch_name(bus: &Connection, name: &str) -> Result<(), DbusError> {
    call_bus(bus, "AddMatch", &match_rule(name)).await.map(drop)
}

/// Asks no longer.
pub async fn unwatch_name(bus: &Connection, name: &str) {
    // Where this fails the bus is gone, and the watch with it.
    let _ = call_bus(bus, "RemoveMatch", &match_rule(name)).await;
}

/// The name that this message says has gone, if it is such a message of the bus.
pub fn disconnected_name(message: &Message) -> Option<String> {
    let header = message.header();
    let from_bus = header.sender().is_some_and(|sender| sender.as_str() == DBUS_SERVICE);
    if !from_bus || header.member().is_none_or(|member| member.as_str() != NAME_OWNER_CHANGED) {
        return None;
    }
    let body = message.body();
    let (name, _, owner): (&str, &str, &str) = body.deserialize().ok()?;
    owner.is_empty().then(|| name.to_owned())
}

fn match_rule(name: &str) -> String {
    format!(
        "type='signal',sender='{DBUS_SERVICE}',path='/org/freedesktop/DBus',interface='{DBUS_SERVICE}',\
         member='{NAME_OWNER_CHANGED}',arg0='{name}'"
    )
}

async fn call_bus(bus: &Connection, method: &str, name: &str) -> Result<Message, DbusError> {
    let request =
        bus.call_method(Some(DBUS_SERVICE), "/org/freedesktop/DBus", Some(DBUS_SERVICE), method, &name);
    match tokio::time::timeout(CALL_TIMEOUT, request).await {
        Ok(reply) => reply.map_err(|error| DbusError::unknown_caller(&error.to_string())),
        Err(_) => Err(DbusError::unknown_caller("it does not answer")),
    }
}
