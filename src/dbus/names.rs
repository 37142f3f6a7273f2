//! The names of the service on the bus.
//!
//! The files in `systemd/dbus/` and the introspection text contain the same names.

/// The name on the bus.
pub const BUS_NAME: &str = "org.wattspan.Wattspan1";

/// The object.
pub const OBJECT_PATH: &str = "/org/wattspan/Wattspan1";

/// The interface.
pub const INTERFACE: &str = "org.wattspan.Wattspan1";

/// D-Bus's own interface for properties.
pub const PROPERTIES_INTERFACE: &str = "org.freedesktop.DBus.Properties";
