//! Error replies on the bus: a name and a message.
//!
//! An error of the service keeps the last part of its name and its message. Errors in the message itself,
//! before the service is called, have the standard names of D-Bus.

use wattspan_client::protocol::MethodError;

const ERROR_NAME_PREFIX: &str = "org.wattspan.Wattspan1.Error.";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DbusError {
    pub name: String,
    /// What is wrong, and what to do.
    pub message: String,
}

impl DbusError {
    /// The bus does not state the caller's credentials.
    pub fn unknown_caller(reason: &str) -> Self {
        Self {
            name: error_name("AccessDenied"),
            message: format!("the bus does not state your credentials: {reason}"),
        }
    }

    /// The caller is not root, and polkit does not authorize it.
    pub fn unauthorized(reason: &str) -> Self {
        Self {
            name: error_name("AccessDenied"),
            message: format!("this requires root, or authorization by polkit: {reason}"),
        }
    }

    pub fn is_access_denied(&self) -> bool {
        self.name.strip_prefix(ERROR_NAME_PREFIX) == Some("AccessDenied")
    }

    /// The message is longer than the limit.
    pub fn oversized(max_bytes: usize) -> Self {
        let reason = format!("is longer than {max_bytes} bytes");
        Self::from(&MethodError::InvalidValue { field: "message".into(), reason })
    }

    /// A queue is full.
    pub fn limits_exceeded(what: &str) -> Self {
        Self { name: "org.freedesktop.DBus.Error.LimitsExceeded".into(), message: what.to_owned() }
    }

    /// The service closed the connection before it replied.
    pub fn no_reply() -> Self {
        let message = "the service closed the connection before it replied; try again".to_owned();
        Self { name: "org.freedesktop.DBus.Error.NoReply".into(), message }
    }

    pub fn invalid_args(message: String) -> Self {
        Self { name: "org.freedesktop.DBus.Error.InvalidArgs".into(), message }
    }

    /// `kind` is `Object`, `Interface`, `Method` or `Property`.
    pub fn unknown(kind: &str, name: &str) -> Self {
        let message = format!("no such {}: {name:?}", kind.to_lowercase());
        Self { name: format!("org.freedesktop.DBus.Error.Unknown{kind}"), message }
    }

    pub fn read_only() -> Self {
        let message = "properties are read-only".to_owned();
        Self { name: "org.freedesktop.DBus.Error.PropertyReadOnly".into(), message }
    }
}

impl From<&MethodError> for DbusError {
    fn from(method_error: &MethodError) -> Self {
        let wire = serde_json::to_value(method_error).unwrap_or_default();
        let last_segment =
            wire["error"].as_str().and_then(|error| error.rsplit('.').next()).unwrap_or("Failed");
        Self { name: error_name(last_segment), message: method_error.to_string() }
    }
}

fn error_name(last_segment: &str) -> String {
    // The bus would close the connection for an invalid error name.
    let is_valid = !last_segment.is_empty() && last_segment.bytes().all(|byte| byte.is_ascii_alphanumeric());
    format!("{ERROR_NAME_PREFIX}{}", if is_valid { last_segment } else { "Failed" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_service_keeps_its_name_and_message() {
        let method_error = MethodError::NoSuchSpan { span: "a".into() };
        let error = DbusError::from(&method_error);
        assert_eq!(error.name, "org.wattspan.Wattspan1.Error.NoSuchSpan");
        assert_eq!(error.message, method_error.to_string());
        let of_varlink = DbusError::from(&MethodError::InvalidParameter { parameter: "a".into() });
        assert_eq!(of_varlink.name, "org.wattspan.Wattspan1.Error.InvalidParameter");
    }

    #[test]
    fn a_name_that_the_bus_would_refuse_is_replaced() {
        assert_eq!(error_name("b c"), "org.wattspan.Wattspan1.Error.Failed");
        assert_eq!(error_name(""), "org.wattspan.Wattspan1.Error.Failed");
    }
}
