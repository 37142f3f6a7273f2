//! Authorization by polkit for what requires administrator access.
//!
//! The subject is the caller's unique name on the bus. A process id is not used, because another process can
//! reuse it between the check and the action (CVE-2013-4288, CVE-2019-6133). Every failure denies: no polkit,
//! no reply, a caller that disconnected (CVE-2021-3560).

use std::collections::BTreeMap;
use std::time::Duration;

use zbus::{Connection, Variant};

/// The polkit action for a reload.
pub const RELOAD_ACTION: &str = "org.wattspan.wattspand.reload";

/// Long enough to type a password.
const AUTHORIZATION_TIMEOUT: Duration = Duration::from_secs(120);

/// `AllowUserInteraction` of CheckAuthorization.
const ALLOW_USER_INTERACTION: u32 = 1;

/// is_authorized, is_challenge, details.
type AuthorizationResult = (bool, bool, BTreeMap<String, String>);

/// Asks polkit. `Err` contains the reason for a denial.
pub async fn check_authorization(bus: &Connection, caller: &str, interactive: bool) -> Result<(), String> {
    let subject = BTreeMap::from([("name", Variant::from(caller))]);
    let details = BTreeMap::<&str, &str>::new();
    let flags = if interactive { ALLOW_USER_INTERACTION } else { 0 };
    let arguments = (("system-bus-name", subject), RELOAD_ACTION, details, flags, "");
    let request = bus.call_method(
        Some("org.freedesktop.PolicyKit1"),
        "/org/freedesktop/PolicyKit1/Authority",
        Some("org.freedesktop.PolicyKit1.Authority"),
        "CheckAuthorization",
        &arguments,
    );
    let Ok(result) = tokio::time::timeout(AUTHORIZATION_TIMEOUT, request).await else {
        return Err("polkit did not reply".to_owned());
    };
    let answer = result.map_err(|error| format!("the request to polkit failed: {error}"))?;
    let body = answer.body();
    match body.deserialize::<(AuthorizationResult,)>() {
        Ok(((true, _, _),)) => Ok(()),
        Ok(((false, true, _),)) => {
            Err("polkit requires a password; call with interaction allowed".to_owned())
        }
        Ok(_) => Err("polkit denied it".to_owned()),
        Err(error) => Err(format!("the reply of polkit is invalid: {error}")),
    }
}
