//! The names of the service on the bus.
//!
//! The files in `systemd/dbus/` and the introspection text contain the same names.

pub const BUS_NAME: &str = "org.wattspan.Wattspan1";

pub const OBJECT_PATH: &str = "/org/wattspan/Wattspan1";

pub const INTERFACE: &str = "org.wattspan.Wattspan1";

pub const PROPERTIES_INTERFACE: &str = "org.freedesktop.DBus.Properties";
