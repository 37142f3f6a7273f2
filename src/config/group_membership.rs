//! Commands that add a user to the groups that have access.
//!
//! The commands fit this system and its groups: a group that does not exist is created first.

use super::getgrnam_ffi;
use super::section::AccessGroups;

/// Whether a group of this name exists. May block on a name service, so it is not called while serving clients.
pub fn group_exists(name: &str) -> bool {
    getgrnam_ffi::gid_by_name(name).is_some()
}

/// The commands that add USER to these groups; missing groups are created first.
pub fn join_commands(groups: &[&str]) -> String {
    let groups: Vec<(&str, bool)> = groups.iter().map(|group| (*group, group_exists(group))).collect();
    membership_commands(std::env::consts::OS == "macos", &groups)
}

fn membership_commands(is_macos: bool, groups: &[(&str, bool)]) -> String {
    let create = |name: &str| match is_macos {
        true => format!("sudo dseditgroup -o create {name}"),
        false => format!("sudo groupadd --system {name}"),
    };
    let mut all: Vec<String> =
        groups.iter().filter(|(_, exists)| !exists).map(|(name, _)| create(name)).collect();
    if is_macos {
        all.extend(groups.iter().map(|(name, _)| format!("sudo dseditgroup -o edit -a USER -t user {name}")));
    } else {
        let names: Vec<&str> = groups.iter().map(|(name, _)| *name).collect();
        all.push(format!("sudo usermod -aG {} USER", names.join(",")));
    }
    all.join(" && ")
}

/// Warnings for groups in the configuration that do not exist. The telemetry group may be missing if it has its default name.
pub fn missing_group_warnings(groups: &AccessGroups) -> Vec<String> {
    let default = AccessGroups::default();
    let telemetry = Some(&groups.telemetry_group).filter(|name| **name != default.telemetry_group);
    let extra = [("coarse_group", groups.coarse_group.as_ref()), ("telemetry_group", telemetry)];
    let mut missing = Vec::new();
    if !group_exists(&groups.span_group) {
        let span = &groups.span_group;
        let advice = join_commands(&[span]);
        missing.push(format!(
            "the group {span} does not exist: no user but root and the daemon's own may measure; create it with \
             `{advice}`, then restart wattspand"
        ));
    }
    for (key, name) in extra {
        if let Some(name) = name.filter(|name| !group_exists(name)) {
            let advice = join_commands(&[name]);
            missing.push(format!(
                "the group {name} (access.{key}) does not exist and gives access to no user; create it with \
                 `{advice}`, then restart wattspand"
            ));
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_created_only_where_it_is_missing() {
        let linux = |groups: &[(&str, bool)]| membership_commands(false, groups);
        assert_eq!(linux(&[("wattspan", true)]), "sudo usermod -aG wattspan USER");
        assert_eq!(
            linux(&[("wattspan", true), ("extra", false)]),
            "sudo groupadd --system extra && sudo usermod -aG wattspan,extra USER"
        );
        assert_eq!(
            membership_commands(true, &[("wattspan", false)]),
            "sudo dseditgroup -o create wattspan && sudo dseditgroup -o edit -a USER -t user wattspan"
        );
        assert!(join_commands(&["no-such-group-here"]).contains("no-such-group-here && sudo "));
    }

    #[test]
    fn every_group_that_is_configured_and_missing_is_named_with_its_commands() {
        let groups = |span: &str, coarse: Option<&str>, telemetry: &str| AccessGroups {
            coarse_group: coarse.map(str::to_owned),
            span_group: span.into(),
            telemetry_group: telemetry.into(),
        };
        assert!(missing_group_warnings(&groups("daemon", None, "wattspan-telemetry")).is_empty());
        assert!(missing_group_warnings(&groups("daemon", Some("daemon"), "daemon")).is_empty());
        let missing = missing_group_warnings(&groups("no-a", Some("no-b"), "no-c"));
        for (line, name) in missing.iter().zip(["no-a", "no-b", "no-c"]) {
            assert!(
                line.starts_with(&format!("the group {name} ")) && line.contains(&join_commands(&[name])),
                "{line}"
            );
        }
        assert_eq!(missing.len(), 3);
    }
}
