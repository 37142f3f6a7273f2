//! What the bus shows to those who look around: the object's description and the way to it.
//!
//! Owns no text of its own: the object's description is the file that is installed for tools to read.

use super::PATH;

/// The object's description, as installed.
pub const OBJECT: &str = include_str!("../../systemd/dbus/org.wattspan.Wattspan1.xml");

/// The description of what is at `path`: the object, a step on the way to it, or nothing.
pub fn at(path: &str) -> Option<String> {
    if path == PATH {
        return Some(OBJECT.to_owned());
    }
    let below = PATH.strip_prefix(path.trim_end_matches('/'))?.strip_prefix('/')?;
    let next = below.split('/').next()?;
    Some(format!("<node>\n  <node name=\"{next}\"/>\n</node>\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_the_object_is_shown_step_by_step_and_nothing_else() {
        assert!(at("/").unwrap().contains("name=\"org\""));
        assert!(at("/org").unwrap().contains("name=\"wattspan\""));
        assert!(at("/org/wattspan").unwrap().contains("name=\"Wattspan1\""));
        assert_eq!(at(PATH).as_deref(), Some(OBJECT));
        for nowhere in ["/org/watt", "/other", "/org/wattspan/Wattspan1/span"] {
            assert_eq!(at(nowhere), None, "{nowhere}");
        }
    }
}
