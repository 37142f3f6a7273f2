//! The one signal: a domain began or ceased to be live.
//!
//! Owns the last known state of each domain and looks every few seconds; the service is not asked to tell. The signal names
//! the property that changed and carries no value, because everybody on the bus may hear it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use zbus::Variant;

use super::context::DbusContext;
use super::credentials;
use super::service_connection::ServiceConnection;
use super::{INTERFACE, OBJECT_PATH, PROPERTIES_INTERFACE};
use crate::protocol::{GetInfo, Method};

/// How soon a change is told, at the latest; looking costs about 0.1 ms.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Tells changes until the service ends.
pub async fn emit_changes(context: Arc<DbusContext>) {
    let Ok(mut service) = context
        .connection_sender
        .connect(credentials::own_credentials(), None)
        .and_then(ServiceConnection::new)
    else {
        return;
    };
    let mut last = None;
    while let Ok(info) = service.call(GetInfo::NAME).await {
        let current = domain_states(&info);
        if last.as_ref().is_some_and(|last| *last != current) {
            let changed = BTreeMap::<&str, Variant>::new();
            let body = (INTERFACE, changed, ["Domains"].as_slice());
            let emitted = context.bus.emit_signal(
                None::<&str>,
                OBJECT_PATH,
                PROPERTIES_INTERFACE,
                "PropertiesChanged",
                &body,
            );
            if emitted.await.is_err() {
                return;
            }
        }
        last = Some(current);
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Each domain's name and state.
fn domain_states(info: &Map<String, Value>) -> Vec<(Value, Value)> {
    let domains = info.get("domains").and_then(Value::as_array);
    let state = |domain: &Value| (domain["name"].clone(), domain["liveness"].clone());
    domains.map(|domains| domains.iter().map(state).collect()).unwrap_or_default()
}
