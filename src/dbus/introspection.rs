//! What the bus shows to those who look around: the object's description and the way to it.
//!
//! Owns no text of its own: the object's description is the file that is installed for tools to read.

use super::OBJECT_PATH;

/// The object's description, as installed.
pub const OBJECT_XML: &str = include_str!("../../systemd/dbus/org.wattspan.Wattspan1.xml");

/// The description of what is at `path`: the object, a step on the way to it, or nothing.
pub fn describe(path: &str) -> Option<String> {
    if path == OBJECT_PATH {
        return Some(OBJECT_XML.to_owned());
    }
    let rest = OBJECT_PATH.strip_prefix(path.trim_end_matches('/'))?.strip_prefix('/')?;
    let next = rest.split('/').next()?;
    Some(format!("<node>\n  <node name=\"{next}\"/>\n</node>\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_object_and_its_parent_paths_are_described() {
        assert!(describe("/").unwrap().contains("name=\"org\""));
        assert!(describe("/org").unwrap().contains("name=\"wattspan\""));
        assert!(describe("/org/wattspan").unwrap().contains("name=\"Wattspan1\""));
        assert_eq!(describe(OBJECT_PATH).as_deref(), Some(OBJECT_XML));
        for nowhere in ["/org/watt", "/other", "/org/wattspan/Wattspan1/span"] {
            assert_eq!(describe(nowhere), None, "{nowhere}");
        }
    }
}
