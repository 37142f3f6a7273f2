//! The credentials of a client, as the bus states them, and whether the client is still connected.
//!
//! The match rule for the name is added before the credentials are queried. So the disconnection of a client
//! either makes the query fail or is signalled. Every failure denies access, including that of a client that
//! disconnected (CVE-2021-3560).

use std::time::Duration;

use wattspan_system::unix_socket::PeerCredentials;
use zbus::fdo::ConnectionCredentials;
use zbus::{Connection, Message};

use super::dbus_error::DbusError;

const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// No group, as in chown(2).
const NO_GROUP: u32 = u32::MAX;

/// The bus daemon.
pub const DBUS_SERVICE: &str = "org.freedesktop.DBus";

/// The signal about a name that got or lost its owner.
pub const NAME_OWNER_CHANGED: &str = "NameOwnerChanged";

/// The user, groups and process of the owner of a unique name. The process id is optional: without it, only
/// the process share is missing.
pub async fn query_credentials(
    bus: &Connection,
    name: &str,
) -> Result<(PeerCredentials, Option<u32>), DbusError> {
    let reply = call_bus(bus, "GetConnectionCredentials", name).await?;
    let body = reply.body();
    let credentials: ConnectionCredentials =
        body.deserialize().map_err(|error| DbusError::unknown_caller(&error.to_string()))?;
    let uid =
        credentials.unix_user_id().ok_or_else(|| DbusError::unknown_caller("its reply has no user ID"))?;
    let pid = credentials.process_id();
    // Without groups, the client has only the access of its user.
    let groups = credentials.into_unix_group_ids().unwrap_or_default();
    Ok((PeerCredentials { uid, gid: NO_GROUP, groups }, pid))
}

/// The credentials of the daemon.
pub fn own_credentials() -> PeerCredentials {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    PeerCredentials { uid, gid, groups: Vec::new() }
}

/// Adds a match rule for the disconnection of this name.
pub async fn watch_name(bus: &Connection, name: &str) -> Result<(), DbusError> {
    call_bus(bus, "AddMatch", &match_rule(name)).await.map(drop)
}

/// Removes the match rule.
pub async fn unwatch_name(bus: &Connection, name: &str) {
    // A failure means that the bus is gone, and the rule with it.
    let _ = call_bus(bus, "RemoveMatch", &match_rule(name)).await;
}

/// The name that disconnected, if the message is that signal of the bus daemon.
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
        Err(_) => Err(DbusError::unknown_caller("it did not reply")),
    }
}
