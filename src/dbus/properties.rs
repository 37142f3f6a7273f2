//! The properties of `org.wattspan.Wattspan1`: which answer of the service each is a part of.
//!
//! Owns that table. A property is asked of the service each time, as the caller: what it may not know is not in it.

use serde_json::{Map, Value};
use zbus::Variant;

use super::json::{self, VariantDict};
use crate::protocol::{GetBalance, GetInfo, Method};

/// A property.
#[derive(Debug)]
pub struct DbusProperty {
    /// Its name on the bus.
    pub name: &'static str,
    /// The service's method that tells it.
    pub method: &'static str,
    /// The part of that method's reply.
    pub field: &'static str,
}

macro_rules! properties {
    ($($name:literal $method:ident $field:literal;)*) => {
        /// Every property.
        pub const PROPERTIES: &[DbusProperty] = &[$(
            DbusProperty { name: $name, method: $method::NAME, field: $field }
        ),*];
    };
}

properties! {
    "Version" GetInfo "version";
    "BootId" GetInfo "boot_id";
    "NowNs" GetInfo "now_ns";
    "HorizonNs" GetInfo "horizon_ns";
    "HistoryNs" GetInfo "history_ns";
    "Domains" GetInfo "domains";
    "Absent" GetInfo "absent";
    "Samplers" GetInfo "samplers";
    "Access" GetInfo "access";
    "Balance" GetBalance "balance";
}

/// The property of this name.
pub fn find_property(name: &str) -> Option<&'static DbusProperty> {
    PROPERTIES.iter().find(|property| property.name == name)
}

impl DbusProperty {
    /// Its value, out of the reply of its method.
    pub fn value(&self, reply: &mut Map<String, Value>) -> Option<Variant<'static>> {
        json::to_variant(self.field, reply.remove(self.field)?)
    }
}

/// All properties that are parts of this method's reply.
pub fn properties_of(method: &str, mut reply: Map<String, Value>) -> VariantDict {
    let of_method = PROPERTIES.iter().filter(|property| property.method == method);
    of_method.filter_map(|property| Some((property.name.to_owned(), property.value(&mut reply)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::introspection::OBJECT_XML;
    use super::*;

    #[test]
    fn the_introspection_xml_describes_these_properties() {
        let described: Vec<&str> =
            OBJECT_XML.split("<property name=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert_eq!(described, PROPERTIES.iter().map(|property| property.name).collect::<Vec<_>>());
    }
}
